"""The work on pixels: cutting, resizing, colours, blur; in Python and in compiled form."""
