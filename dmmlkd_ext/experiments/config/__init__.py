"""Configurations: what they hold, the recommended ones, and how they are read from files and words."""

from dmmlkd_ext.experiments.config.schema import DataConfig, ExperimentConfig, TopologyConfig

__all__ = ["DataConfig", "ExperimentConfig", "TopologyConfig"]
