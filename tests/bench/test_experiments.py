"""conf/experiment and conf/scale: every job of every sweep composes and every node of it builds. Nothing is trained."""

from __future__ import annotations

import itertools

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from bench import run, spec, stages
from bench.cli.help import help_text
from bench.cli.usage import options, problem
from bench.store import expected
from tests.helpers import ATTACKS, ROOT

EXPERIMENTS, SCALES = options("experiment"), options("scale")
PAPERS = ["uchida_2017", "neuralmark_2025", "watermas_2024", "tang_2025"]
NODES = ("method", "attack", "model", "data", "train", "task", "verify")
HERE = "results_dir=unused"
BOTH = [(e, s) for e in EXPERIMENTS for s in SCALES]
NO_DIGITS = ("digits", "architectures", "neuralmark_2025_text", "claims/neuralmark_text")
LONG = ("digits", "robust", "watermas_2024_segmentation")  # hundreds of jobs, or large networks: not for CI


def marks_of(experiment: str) -> tuple:
    return (pytest.mark.slow,) if experiment in LONG else (pytest.mark.slow, pytest.mark.quick)


def slow(pairs: list) -> list:
    """Experiments and scales as a test's parameters."""
    return [pytest.param(*pair, marks=marks_of(pair[0])) for pair in pairs]


def few(pairs: list) -> list:
    """As `slow`; claims, which share a network, are not for CI."""
    claims = [pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs if pair[0].startswith("claims/")]
    return [*slow([pair for pair in pairs if not pair[0].startswith("claims/")]), *claims]


def axes(experiment: str, scale: str, *more: str) -> list[list[str]]:
    """The sweep's axes as Hydra's own sweeper splits them, for a command line; with `initialize_config_dir` around."""
    words = [f"experiment={experiment}", f"scale={scale}", HERE, *more]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    single = [o.input_line for o in parser.parse_overrides(words) if not o.is_sweep_override()]
    params = compose("config", overrides=single, return_hydra_config=True).hydra.sweeper.params
    parsed = parser.parse_overrides([*(f"{k}={v}" for k, v in params.items()), *words])
    jobs = BasicSweeper.split_arguments(parsed, None)[0]
    return [list(dict.fromkeys(column)) for column in zip(*jobs, strict=True)]


def check(words: list[str]) -> DictConfig:
    cfg = compose("config", overrides=words)
    assert not OmegaConf.missing_keys(cfg)
    nodes = {name: spec.build(cfg[name], name) for name in NODES}
    assert nodes["attack"].goal == cfg.attack.goal
    if isinstance(transfer := getattr(nodes["attack"], "transfer", None), dict):
        spec.build(transfer, "attack.transfer")
    known = expected.of(cfg, spec.kind(nodes["method"]), spec.kind(nodes["attack"]))
    assert known or "expected" not in cfg
    return cfg


@pytest.fixture
def conf():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


@pytest.mark.parametrize(("experiment", "scale"), BOTH)
def test_each_choice_of_each_axis_builds(conf, experiment, scale):
    """All axes step at once, the shorter ones over again: as few jobs as the longest has choices (0.1 s each)."""
    columns = axes(experiment, scale)
    longest = max(map(len, columns))
    assert longest > 1
    for i in range(longest):
        check([column[i % len(column)] for column in columns])


@pytest.mark.parametrize(("experiment", "scale"), slow(BOTH))
def test_every_job_builds(conf, experiment, scale):
    for words in itertools.product(*axes(experiment, scale)):
        check(list(words))


@pytest.mark.parametrize(("experiment", "scale"), few([b for b in BOTH if b[0] not in NO_DIGITS]))
def test_every_network_has_room_for_its_mark(conf, tmp_path, experiment, scale):
    """Digits have the classes and the size of CIFAR-10: networks are built, keys drawn, nothing is trained."""
    more = [
        f"data={'skimage' if experiment == 'zhang_2021' else 'scenes' if 'segmentation' in experiment else 'digits'}",
        *(["attack.transfer=null"] if experiment.endswith("transfer") else []),
    ]
    seen = set()
    for words in itertools.product(*axes(experiment, scale, *more)):
        cfg = compose("config", overrides=[*words, f"results_dir={tmp_path}", "device=cpu"])
        if (what := str((cfg.model, cfg.method))) in seen:
            continue
        seen.add(what)
        x = run.prepare(cfg)
        key = x.method.keygen(stages.skeleton(x), x.rng("owner", "key"), x.task)
        assert key.n_bits == cfg.method.n_bits
        assert not cfg.method.get("layer") or key.where == (f"{cfg.method.layer}.weight",)


@pytest.mark.parametrize("paper", PAPERS)
def test_papers_run_in_full_on_cifar10_and_small_on_digits(conf, paper):
    full, small = (compose("config", overrides=[f"experiment={paper}", f"scale={s}"]) for s in ("full", "small"))
    assert (full.data.label, small.data.label) == ("cifar10", "digits")
    assert full.train.epochs >= 100
    plain = compose("config")
    assert (small.train, small.model, small.data) == (plain.train, plain.model, plain.data)


def test_marks_in_pictures_keep_to_pictures_at_every_scale(conf):
    plain = compose("config", overrides=["task=restoration", "method=boxfree"])
    for scale in ("full", "small"):
        cfg = compose("config", overrides=[column[0] for column in axes("zhang_2021", scale)])
        for node in ("task", "data", "model", "train", "method"):
            assert cfg[node] == plain[node], node


def test_papers_schedules_change_at_their_epochs(conf):
    for paper, epochs, rates in (
        ("uchida_2017", [0, 59, 60, 119, 120, 159, 160, 199], [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]),
        ("neuralmark_2025", [0, 99, 100, 149, 150, 199], [0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]),
    ):
        train = spec.build(compose("config", overrides=[f"experiment={paper}"]).train, "train")
        steps = 562 * train.epochs  # 36,000 images in batches of 64
        assert [train.lr * train.factor(562 * e, steps) for e in epochs] == pytest.approx(rates)


@pytest.mark.parametrize("experiment", [None, *PAPERS])
def test_the_command_line_wins_over_experiment_and_scale(conf, experiment):
    words = [f"experiment={experiment}"] if experiment else []
    words += ["scale=small", "data=parquet", "data.path=somewhere", "data.train_limit=4000", "train.epochs=3"]
    cfg = compose("config", overrides=[*words, "model=vit_tiny", "attack=finetune", "attack.epochs=7"])
    assert (cfg.data.path, cfg.data.train_limit, cfg.data.crop) == ("somewhere", 4000, 4)
    assert (cfg.model.label, cfg.train.epochs, cfg.attack.epochs) == ("vit_tiny", 3, 7)
    assert problem(words) == ""


def test_a_given_axis_is_no_longer_swept(conf):
    columns = axes("neuralmark_2025", "small", "method=neuralmark", "method.rounds=0,1,2")
    assert ["method=neuralmark"] in columns
    assert ["method.rounds=0", "method.rounds=1", "method.rounds=2"] in columns


def test_files_of_an_experiment_or_a_scale_are_those_of_something():
    """A typo in a name would silently be no file: they are looked for, not required."""
    folder = ROOT / "conf" / "experiment"
    for path in folder.rglob("*/*.yaml"):
        if path.relative_to(folder).with_suffix("").as_posix() in EXPERIMENTS:
            continue  # a claim
        assert path.parent.relative_to(folder).as_posix() in EXPERIMENTS
        assert path.stem in ATTACKS
        known = OmegaConf.load(ROOT / "conf" / "attack" / f"{path.stem}.yaml")
        own = OmegaConf.load(path)
        assert set(own) <= set(known), path
        # What costs time has to be given back: a scale knows nothing of an experiment's epochs and strengths.
        small = ROOT / "conf" / "scale" / "small" / path.name
        assert set(own) - {"knows", "data", "scope", "criterion", "mode"} <= set(OmegaConf.load(small)), path
    for path in (ROOT / "conf" / "scale").glob("*/*.yaml"):
        assert path.parent.name in SCALES
        assert path.stem in (*ATTACKS, *EXPERIMENTS)


def test_a_language_model_has_room_for_its_mark_in_what_is_tuned(conf, tmp_path):
    """The paper's network asks for files: of its text the small scale alone is opened."""
    words = [column[0] for column in axes("neuralmark_2025_text", "small")]
    x = run.prepare(compose("config", overrides=[*words, f"results_dir={tmp_path}", "device=cpu"]))
    assert (x.method.situation, x.task.kind, x.model.title) == ("lora", "language", "gpt")
    model = stages.skeleton(x)
    assert x.method.keygen(model, x.rng("owner", "key"), x.task).where == ("h.1.attn.c_attn.weight",)
    whole = compose("config", overrides=[column[0] for column in axes("neuralmark_2025_text", "full")])
    assert (whole.model.name, whole.method.rounds, whole.train.epochs) == ("gpt2-medium", 10, 0)
    # Each round halves: 3 x 1024 x 1024 weights of the last c_attn hold 512 x 2^10, twice.
    assert whole.method.k * 2 ** (whole.method.rounds + 1) <= 3 * 1024 * 1024


def test_scales_are_in_the_help_and_a_wrong_one_is_one_line():
    lines = help_text(["scale"]).splitlines()
    assert {line.split()[0] for line in lines[lines.index("scale=") + 1 :][:2]} == set(SCALES)
    assert max(map(len, lines)) <= 80
    assert (
        problem(["experiment=tang_2025", "scale=smal"])
        == "unknown scale 'smal'; did you mean 'small'? valid: full, small"
    )
    assert problem(["experiment=tang_2024"]).startswith("unknown experiment 'tang_2024'; did you mean 'tang_2025'")


def test_what_neuralmark_reports_stands_beside_its_cells(conf):
    """The published value of each cell that the experiments run, by what its file will hold."""

    def of(experiment: str, *words: str) -> list[tuple]:
        cfg = check([f"experiment={experiment}", *words])
        found = expected.of(cfg, spec.kind(spec.build(cfg.method, "method")), cfg.attack._target_.split(".")[1])
        return [(e["knob"], e["strength"], e["published"]) for e in found if e["knob"] not in expected.BEFORE]

    transfer, back = "neuralmark_2025_transfer", ("data=cifar100", "data@attack.transfer=cifar10")
    assert of("neuralmark_2025", "method=neuralmark", "attack=forge") == [("tries", 1, 48.6)]
    assert of("neuralmark_2025", "method=uchida", "attack=forge") == [("learn", "last", 100)]
    assert of("neuralmark_2025", "method=uchida", "attack=prune") == []
    for method, values in (("neuralmark", (100, 92.2)), ("uchida", (53.9, 62.1))):
        words = (f"method={method}", "attack=overwrite", *back)
        lambdas, rates = of(transfer, *words)
        assert lambdas == ("lambda factor, lr 0.001", 1000, values[0])
        assert rates == ("lambda factor, lr 0.01", 1, values[1])
        cfg = compose("config", overrides=[f"experiment={transfer}", *words])
        assert (1000 in cfg.attack.factors, {0.001, 0.01} <= set(cfg.attack.lrs)) == (True, True)
    assert [value for *_, value in of(transfer, "method=uchida", "attack=finetune")] == [85.9, 70.3]
