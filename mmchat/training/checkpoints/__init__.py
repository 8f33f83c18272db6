"""What a run can go on from: written, verified, cut anew for other ranks."""
