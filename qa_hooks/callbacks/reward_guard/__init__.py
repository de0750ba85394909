"""RewardGuard: notices that a reward is being exploited."""
