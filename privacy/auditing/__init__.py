"""Is the privacy budget true? Lower bounds on epsilon from what a training gives away."""
