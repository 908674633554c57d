"""The commands of `dmmlkd`, as dataclasses: their fields are the options."""
