"""Networks, their teachers and pretrained weights."""
