"""RewardGuard: rings when images move away as they do by an exploited reward."""
