"""GIQA (Gu et al. 2020): scorers fitted on real images or on the snapshots of a training run."""
