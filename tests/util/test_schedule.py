"""Length, learning-rate drop and progress of a run, also when it resumes with other steps."""

import math

import pytest

from util.schedule import Schedule


def run(schedule: Schedule, steps: int | None = None) -> list[tuple[int, int, float]]:
    """(epoch, first image, lr factor) of every step until the end, or of ``steps``."""
    done = []
    while not schedule.is_finished and (steps is None or len(done) < steps):
        done.append((schedule.epoch, schedule.images, schedule.learning_rate_factor(schedule.step)))
        schedule.advance()
    return done


def test_epochs_by_hand():
    schedule = Schedule(11, 4, epochs=2, lr_drop=1)
    assert (schedule.steps_per_epoch, schedule.total_steps, schedule.drop_step) == (2, 4, 2)
    assert run(schedule) == [(0, 0, 1.0), (0, 4, 1.0), (1, 0, 0.1), (1, 4, 0.1)]
    assert (schedule.step, schedule.epoch, schedule.images) == (4, 2, 0)


def test_steps_by_hand():
    schedule = Schedule(4, 2, max_steps=3, lr_drop_step=1)
    assert run(schedule) == [(0, 0, 1.0), (0, 2, 0.1), (1, 0, 0.1)]
    assert schedule.epochs_done == 1.5


def test_without_a_drop_lr_stays():
    assert {factor for *_, factor in run(Schedule(4, 2, epochs=5))} == {1.0}


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 8), (8, 2), (4, 4)])
@pytest.mark.parametrize("stop_after", [2.5, 2, 3.5, 0.5])
def test_epochs_done_stay_done_with_other_steps(before, after, stop_after):
    """4 epochs of 16 images, lr drops after 3: every image is seen 4 times, and 3 times with the higher rate."""
    first = Schedule(16, before, epochs=4, lr_drop=3)
    seen = run(first, round(stop_after * first.steps_per_epoch))
    rest = Schedule(16, after, epochs=4, lr_drop=3)
    rest.go_on_at(first.step, first.epoch, first.images)
    images = [(e, first_image + n, f) for e, first_image, f in seen for n in range(before)]
    images += [(e, first_image + n, f) for e, first_image, f in run(rest) for n in range(after)]
    assert sorted(images) == [(e, n, 1.0 if e < 3 else 0.1) for e in range(4) for n in range(16)]
    assert rest.step == rest.total_steps


def test_what_is_less_than_a_step_is_left_out():
    schedule = Schedule(10, 4, epochs=2, lr_drop=1)
    schedule.go_on_at(3, 0, 8)
    assert (schedule.epoch, schedule.images, schedule.total_steps, schedule.drop_step) == (1, 0, 5, 3)


def test_a_run_of_steps_keeps_its_length_with_other_steps():
    schedule = Schedule(8, 2, max_steps=10, lr_drop_step=7)
    schedule.go_on_at(5, 1, 4)
    assert (schedule.total_steps, schedule.drop_step) == (10, 7)
    assert [epoch for epoch, *_ in run(schedule)] == [1, 1, 2, 2, 2]


def test_nothing_is_left_of_a_finished_schedule():
    schedule = Schedule(8, 2, epochs=2, lr_drop=1)
    schedule.go_on_at(6, 2, 0)
    assert schedule.is_finished
    assert schedule.learning_rate_factor(6) == 0.1


def test_the_warm_up_is_linear_and_ends_at_the_full_rate():
    schedule = Schedule(8, 2, max_steps=8, lr_drop_step=6, warmup_steps=4)
    factors = [round(schedule.learning_rate_factor(step), 3) for step in range(8)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1]


@pytest.mark.parametrize("length", [{"max_steps": 12}, {"epochs": 3}])
def test_the_cosine_is_the_closed_form(length):
    """(1 + cos(pi t / T)) / 2, Loshchilov and Hutter, 1608.03983, equation 5 with eta_min = 0, times the warm-up."""
    schedule = Schedule(8, 2, lr_schedule="cosine", warmup_steps=2, **length)
    expected = [min(1, (t + 1) / 2) * (1 + math.cos(math.pi * t / 12)) / 2 for t in range(12)]
    assert [factor for *_, factor in run(schedule)] == pytest.approx(expected, rel=1e-12)
    assert schedule.learning_rate_factor(12) == pytest.approx(0, abs=1e-12)
    assert schedule.learning_rate_factor(13) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("after", [2, 4, 8])
def test_the_cosine_goes_on_along_one_curve_with_other_batches(after):
    first = Schedule(16, 4, epochs=4, lr_schedule="cosine")
    run(first, 6)  # an epoch and a half
    rest = Schedule(16, after, epochs=4, lr_schedule="cosine")
    rest.go_on_at(first.step, first.epoch, first.images)
    for epoch, images, factor in run(rest):
        assert factor == pytest.approx((1 + math.cos(math.pi * (16 * epoch + images) / 64)) / 2)


@pytest.mark.parametrize("length", [{"max_steps": 9}, {"epochs": 3}])
def test_a_resumed_cosine_has_the_very_same_rates(length):
    """Bit for bit, wherever it stops; what is left of an epoch after the last whole step is not trained on."""
    whole = [factor for *_, factor in run(Schedule(11, 3, lr_schedule="cosine", **length))]
    for stop in range(len(whole)):
        first, rest = (Schedule(11, 3, lr_schedule="cosine", **length) for _ in range(2))
        run(first, stop)
        rest.go_on_at(first.step, first.epoch, first.images)
        assert [factor for *_, factor in run(rest)] == whole[stop:]
        ahead = first.learning_rate_factor(first.step + 2)  # as the scheduler of torch asks before a step is counted
        assert stop + 2 >= len(whole) or ahead == whole[stop + 2]
