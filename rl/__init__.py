"""rl: SFT and GRPO on trajectories, with action and trajectory masks. Knows no rewards, boxes or task types."""
