"""Categories as a file lists them."""

import pytest

from models.checkpoints.categories import saved_categories

WHOLE = {"label": 0, "id": 7, "name": "thing"}


@pytest.mark.parametrize("entry", [WHOLE, WHOLE | {"id": None}, WHOLE | {"colour": "red"}])
def test_whole_categories(entry):
    assert saved_categories([entry]) == [{key: entry[key] for key in ("label", "id", "name")}]


@pytest.mark.parametrize("missing", WHOLE)
def test_categories_that_lack_a_key_are_refused(missing):
    assert saved_categories([WHOLE, {key: value for key, value in WHOLE.items() if key != missing}]) is None


@pytest.mark.parametrize("found", [None, [], {}, "thing", [None], [WHOLE | {"label": "0"}], [WHOLE | {"name": 0}]])
def test_what_is_no_list_of_categories_is_refused(found):
    assert saved_categories(found) is None
