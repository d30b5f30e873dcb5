"The tools of `fastmix.resume`: what a checkpoint is, what is in it, and whether it belongs to a run."
