"""What runs the original beside ours; needs the parity environment (`torch`, `cn_clip`)."""
