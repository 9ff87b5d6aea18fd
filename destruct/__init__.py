"""PPO under a KL constraint on several data sets at once, with an autocurriculum, over ZeRO-3 engines."""
