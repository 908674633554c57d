"""Which options of a configuration are the paper's [P], which are choices of this project [C], and why.

No value is known of the paper, so that [P] says that there is such a thing, never how much of it.
"""

from __future__ import annotations

PAPER, OURS = "[P]", "[C]"

MARKS: dict[str, tuple[str, str]] = {
    "seed": (OURS, "of every random draw"),
    "method.name": (OURS, "the paper names DMML and DMML-KD; controls, ablations and rivals are our selection"),
    "method.exchange": (PAPER, "devices mix their models with neighbours, without a server; off in `local` alone"),
    "method.losses.classification": (OURS, "weight; the auxiliary classification loss itself is [P]"),
    "method.losses.similarity": (OURS, "weight; the similarity loss itself is [P]"),
    "method.losses.difference": (OURS, "weight; the difference loss itself is [P], its normalized form ours"),
    "method.losses.generator": (OURS, "weight; that a generator guides the common features is [P]"),
    "method.losses.rehearsal": (OURS, "weight and term: the shared head rehearses generated features of all classes"),
    "method.generator.kind": (PAPER, "a generator of common features; its architecture and the other kinds are ours"),
    "method.generator.noise_width": (OURS, "width of the generator's noise"),
    "method.generator.hidden_width": (OURS, "width of the generator's hidden layer"),
    "method.generator.steps": (OURS, "steps of the generator's training a round"),
    "method.generator.learning_rate": (OURS, "of the generator's Adam"),
    "method.generator.samples_per_class": (OURS, "generated features a class in a step"),
    "method.generator.pool_per_class": (OURS, "generated features a class that a round's iterations draw from"),
    "method.generator.moment_weight": (OURS, "weight of matching the moments of a device's own features"),
    "method.generator.mode_seeking": (OURS, "weight of the term against collapse"),
    "method.generator.weigh_heads": (OURS, "whether teachers count by what they saw of a class; FedGen's alone"),
    "method.generator.warmup_rounds": (OURS, "rounds before guidance starts"),
    "method.generator.ramp_rounds": (OURS, "rounds until guidance has its full weight"),
    "method.generator.update_rate": (OURS, "of a device's statistics, for the kinds that are not a network"),
    "method.balance.policy": (
        PAPER,
        "`balanced` trains fast modalities less, within the energy; the others are controls",
    ),
    "method.balance.exponent": (OURS, "how strongly iterations follow the balance metric"),
    "method.balance.relative": (OURS, "scale of the parameter variation; that the metric is made of it is [P]"),
    "method.balance.smoothing": (OURS, "of the moving average of speeds"),
    "method.proximal": (OURS, "weight of FedProx's term, a rival"),
    "method.modulation": (OURS, "gradient modulation of OGM-GE and MMPareto, rivals"),
    "method.modulation_strength": (OURS, "of the gradient modulation, rivals"),
    "method.only": (OURS, "the modality of a reference that uses one alone"),
    "method.centralized": (OURS, "an upper reference with all data in one place"),
    "data.dataset": (OURS, "the paper's datasets are not known"),
    "data.partition": (OURS, "how samples are split; that data are non-IID is [P]"),
    "data.num_devices": (OURS, "the paper's number is not known"),
    "data.module": (OURS, "code that registers a dataset of one's own"),
    "data.dirichlet_alpha": (OURS, "how unlike devices' labels are"),
    "data.missing_rate": (OURS, "share of incomplete devices; that devices' modalities differ is [P]"),
    "data.modalities_per_device": (OURS, "least and most modalities of an incomplete device"),
    "topology.name": (OURS, "family of graphs; that links are wireless and between devices is [P]"),
    "topology.radius_m": (OURS, "range of a link"),
    "topology.side_m": (OURS, "side of the square that devices are in"),
    "topology.degree": (OURS, "neighbours, for one family of graphs"),
    "topology.probability": (OURS, "of a link or of rewiring it, for two families of graphs"),
    "topology.path": (OURS, "file of links; none is used"),
    "energy.model": (OURS, "what an iteration and a broadcast cost; that energy limits training is [P]"),
    "energy.iteration_energy_joule": (OURS, "of the fixed model"),
    "energy.budget_fraction": (OURS, "initial energy over what all iterations would cost"),
    "energy.budget_joule": (OURS, "initial energy in joules; none is used"),
    "energy.kappa": (OURS, "effective switched capacitance, a usual value of the field"),
    "energy.min_frequency_hz": (OURS, "of devices' processors"),
    "energy.max_frequency_hz": (OURS, "of devices' processors"),
    "energy.cycles_per_mac": (OURS, "processor cycles a multiply-accumulate"),
    "channel.bandwidth_hz": (OURS, "of a link"),
    "channel.transmit_power_w": (OURS, "of a broadcast"),
    "channel.noise_dbm_per_hz": (OURS, "thermal noise at room temperature"),
    "channel.path_loss_at_1_km_db": (OURS, "the field's usual urban model"),
    "channel.path_loss_per_decade_db": (OURS, "the field's usual urban model"),
    "channel.shadowing_db": (OURS, "standard deviation of the log-normal shadowing"),
    "channel.fading": (OURS, "law of the small-scale fading"),
    "channel.min_distance_m": (OURS, "below it the path loss is constant"),
    "channel.min_rate_bit_per_s": (OURS, "below it a link is in outage"),
    "failures.link_probability": (OURS, "of losing a link for a round"),
    "failures.device_probability": (OURS, "of losing a device for a round"),
    "failures.schedule_path": (OURS, "file of failures; none is used"),
    "training.rounds": (OURS, "the paper's number is not known"),
    "training.local_iterations": (OURS, "the most of a modality in a round"),
    "training.batch_size": (OURS, "of a device's mini-batch"),
    "training.learning_rate": (OURS, "tuned on validation data for each method"),
    "training.final_learning_rate_fraction": (OURS, "the linear decay ends there"),
    "training.momentum": (OURS, "of SGD"),
    "training.weight_decay": (OURS, "of SGD"),
    "training.clip_norm": (OURS, "of a device's gradient"),
    "training.input_noise": (OURS, "on training inputs, in units of standardized inputs"),
    "training.feature_width": (OURS, "of the common and of the specific feature; that there are both is [P]"),
    "training.hidden_width": (OURS, "of the perceptron encoders"),
    "training.evaluate_every": (OURS, "rounds between evaluations; no final result depends on it"),
    "training.evaluation_samples": (OURS, "that judge a device before the last round; no final result depends on it"),
    "training.probe": (OURS, "whether encoders are probed at the end; no other result depends on it"),
}
"""Option, as a path in the configuration -> its mark and the reason in one line."""


def mark_of(option: str) -> tuple[str, str]:
    """Return the mark of an option and its reason; what the paper does not speak of is ours.

    Example:
        >>> mark_of("training.momentum")
        ('[C]', 'of SGD')
    """
    return MARKS.get(option, (OURS, "an option that the paper does not speak of"))
