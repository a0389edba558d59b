"""Same results, faster; skip on first reading.

Each module stands behind a plain call:

* ``dropout.py``: ``nn.Dropout`` with cheaper random numbers.
* ``attention.py``: ``F.scaled_dot_product_attention`` with that dropout.
* ``feed_forward.py``: ``linear2(dropout(relu(linear1(x))))``, a few tokens at a time, and its gradient.
* ``normed_conv.py``: convolutions that include the frozen batch norm after them.
* ``frozen_backbone.py``: a copy of a frozen backbone without batch norms, perhaps in 16 bits.
* ``compiled.py``: ``--compile``.
"""
