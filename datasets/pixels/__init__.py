"""Operations on pixels: cropping, resizing, colours, blur; in Python and compiled."""
