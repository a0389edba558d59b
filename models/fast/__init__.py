"""Same results, faster on a CPU; skip on first reading.

Each module here stands behind a plain call of the code outside:

* ``dropout.py``: ``nn.Dropout`` with cheaper random numbers.
* ``attention.py``: ``F.scaled_dot_product_attention`` with that dropout.
* ``feed_forward.py``: ``linear2(dropout(relu(linear1(x))))``, a few tokens at a time, and its gradient.
* ``normed_conv.py``: convolutions that do the work of the frozen batch norms behind them.
* ``frozen_backbone.py``: a copy of a backbone that is never trained, without batch norms.
"""
