"""RewardGuard: is the reward being fooled?"""
