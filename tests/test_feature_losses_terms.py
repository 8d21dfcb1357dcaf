"""Feature terms: what they do with layers of all kinds and sizes, what they train, and CRD's memory."""

import ast
import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdistill
from kdistill.config import losses as sections
from kdistill.errors import ConfigError
from kdistill.losses.adapters import ABF, ConvRegressor, GaussianRegressor, as_map, as_vector
from kdistill.losses.contrastive import Contrast, nce_loss
from kdistill.losses.maps import attention_loss, hcl_loss, hint_loss
from kdistill.losses.relations import pkt_loss, rkd_angle_loss, rkd_distance_loss, sp_loss
from kdistill.losses.terms import LAYERS, TERMS, FeatureTerm, build_term
from kdistill.models.projector import Projector

SAMPLES, CLASSES = 40, 4
LABELS = torch.arange(SAMPLES) % CLASSES
OWN: dict[str, dict[str, Any]] = {
    "at": {"p": 2},
    "rkd": {"distance_weight": 25, "angle_weight": 50},
    "vid": {"initial_variance": 5.0},
    "crd": {"negatives": 16, "T": 0.07, "momentum": 0.5, "dim": 8},
    "simkd": {"factor": 2},
}
PLAIN = {"at", "sp", "rkd", "pkt", "nst"}
N = 6


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


#: layers of two networks: the same, larger and smaller maps, vectors, tokens with and without a class token
STUDENTS = {
    "maps": random(N, 6, 8, 8, seed=1),
    "large maps": random(N, 6, 16, 16, seed=2),
    "odd maps": random(N, 6, 7, 5, seed=3),
    "vectors": random(N, 6, seed=4),
    "tokens": random(N, 16, 6, seed=5),
    "tokens and class": random(N, 17, 6, seed=6),
}
TEACHERS = {
    "maps": random(N, 10, 8, 8, seed=11),
    "small maps": random(N, 10, 4, 4, seed=12).relu(),
    "vectors": random(N, 10, seed=14),
    "tokens": random(N, 17, 10, seed=16),
}


def build(kind: str, student: list[Tensor], teacher: list[Tensor], **own: Any) -> FeatureTerm:
    torch.manual_seed(0)
    settings = SimpleNamespace(kind=kind, **{**OWN.get(kind, {}), **own})
    return build_term(settings, student, teacher, SAMPLES, LABELS)


def call(term: FeatureTerm, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    indices = torch.arange(len(student[0]))
    value: Tensor = term(student, teacher, LABELS[indices], indices)
    return value


def pairs(kind: str) -> int:
    return {"all": 3, "all+embedding": 3}.get(LAYERS[kind], 1)


def test_every_kind_of_the_schema_has_a_term_and_its_layers() -> None:
    """Nothing that a config may ask for is missing, and nothing else is there."""
    union = get_args(sections.Feature)[0]
    kinds = {
        kind for section in get_args(union) for kind in get_args(section.model_fields["kind"].annotation)
    }

    assert kinds == set(TERMS) == set(LAYERS)


#: methods on pixels have nothing to compare in a vector: see test_methods_on_pixels_need_some
CASES = [
    (kind, student, teacher)
    for kind in TERMS
    for student in STUDENTS
    for teacher in TEACHERS
    if kind not in ("at", "nst") or "vectors" not in (student, teacher)
]


@pytest.mark.parametrize(("kind", "student", "teacher"), CASES)
def test_any_layers_can_be_compared(kind: str, student: str, teacher: str) -> None:
    """Widths, sizes and kinds of layers may differ. Student and all adapters get gradient, the teacher none."""
    source = [STUDENTS[student].clone().requires_grad_() for _ in range(pairs(kind))]
    target = [TEACHERS[teacher].clone().requires_grad_() for _ in source]
    term = build(kind, source, target)

    value = call(term, source, target)
    value.backward()

    assert value.shape == ()
    assert torch.isfinite(value)
    for s in source:
        assert s.grad is not None
        assert torch.isfinite(s.grad).all()
        assert s.grad.abs().max() > 0
    for name, parameter in term.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(t.grad is None for t in target)


@pytest.mark.parametrize("kind", [k for k in TERMS if k not in PLAIN])
def test_adapters_are_really_trained(kind: str) -> None:
    """Every parameter's gradient is away from zero, and the term falls when adapters and student follow it."""
    source = [random(N, 6, 4, 4, seed=i).requires_grad_() for i in range(pairs(kind))]
    target = [random(N, 10, 4, 4, seed=10 + i).relu() for i in range(pairs(kind))]
    term = build(kind, source, target)
    optimizer = torch.optim.Adam([*term.parameters(), *source], lr=0.02)
    values = []
    for step in range(30):
        value = call(term, source, target)
        optimizer.zero_grad()
        value.backward()
        if step == 0:
            for name, parameter in term.named_parameters():
                assert parameter.grad is not None
                assert parameter.grad.abs().max() > 1e-5, name
        optimizer.step()
        values.append(value.item())

    assert values[-1] < values[0] - 0.02 * abs(values[0])


@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_a_plain_term_has_nothing_to_train_or_to_save(kind: str) -> None:
    """No parameters and no state; it is copied with the rest of a run all the same."""
    source, target = [random(N, 3, 4, 4)], [random(N, 5, 4, 4, seed=1)]
    term = build(kind, source, target)

    assert list(term.parameters()) == []
    assert term.state_dict() == {}
    assert torch.equal(call(copy.deepcopy(term), source, target), call(term, source, target))


def test_plain_terms_are_sums_over_pairs_of_the_functions() -> None:
    """Maps stay maps for AT, are flattened for SP and averaged for RKD and PKT, whose weights are the settings'."""
    source, target = (
        [random(N, 3, 4, 4), random(N, 5, 2, 2, seed=1)],
        [random(N, 4, 4, 4, seed=2), random(N, 6, 2, 2, seed=3)],
    )
    s, t = source[0].mean((2, 3)), target[0].mean((2, 3))
    one = (source[:1], target[:1])

    def value(kind: str, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return call(build(kind, student, teacher), student, teacher)

    expected = sum(attention_loss(a, b, p=2) for a, b in zip(source, target, strict=True))
    torch.testing.assert_close(value("at", source, target), expected)
    torch.testing.assert_close(value("sp", *one), sp_loss(source[0].flatten(1), target[0].flatten(1)))
    torch.testing.assert_close(value("pkt", *one), pkt_loss(s, t))
    torch.testing.assert_close(value("rkd", *one), 25 * rkd_distance_loss(s, t) + 50 * rkd_angle_loss(s, t))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", TERMS)
def test_half_precision_features_are_welcome(kind: str, autocast: bool) -> None:
    """bfloat16 features, in and out of autocast, give a float32 value near the one from float32 features."""
    source = [random(N, 6, 4, 4, seed=i).bfloat16() for i in range(pairs(kind))]
    target = [random(N, 10, 4, 4, seed=10 + i).bfloat16() for i in range(pairs(kind))]
    term = build(kind, source, target)
    exact = call(copy.deepcopy(term), [s.float() for s in source], [t.float() for t in target])
    torch.manual_seed(0)
    term = build(kind, source, target)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = call(term, source, target)

    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.0)


# --- shapes ---


def test_tokens_make_a_map_row_by_row() -> None:
    """Token 1 of four is the pixel right of token 0; a fifth, the class token, stands first and is left out."""
    tokens = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    square = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])

    assert torch.equal(as_map(tokens), square)
    assert torch.equal(as_map(torch.cat([torch.full((1, 1, 1), 9.0), tokens], dim=1)), square)
    assert as_map(torch.zeros(2, 3)).shape == (2, 3, 1, 1)
    assert torch.equal(as_map(square), square)


def test_vectors_are_means_over_pixels_or_tokens() -> None:
    """A map [[1, 2], [3, 4]] and tokens 1 to 4 both have the mean 2.5; a vector stays."""
    tokens = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])

    assert as_vector(tokens).tolist() == as_vector(as_map(tokens)).tolist() == [[2.5]]
    assert as_vector(torch.ones(2, 3)).shape == (2, 3)


def test_features_that_fit_no_shape() -> None:
    """Seven tokens are no square, and features of one axis are nothing: said with the shape that came."""
    with pytest.raises(ConfigError) as error:
        as_map(torch.zeros(2, 7, 3))

    assert str(error.value) == (
        "features of shape [2, 7, 3] make no map [N, C, H, W]: expected a map, a vector,"
        " or a square number of tokens with or without a class token; choose other layers"
    )
    with pytest.raises(ConfigError, match=r"features of shape \[2\] make no vector \[N, D\]"):
        as_vector(torch.zeros(2))


# --- hint ---


@pytest.mark.parametrize(
    ("student", "kind", "kernel"),
    [
        ((8, 8), nn.Conv2d, (3, 3)),  # twice
        ((2, 2), nn.ConvTranspose2d, (4, 4)),  # half
        ((4, 4), nn.Conv2d, (1, 1)),
        ((6, 5), nn.Conv2d, (3, 2)),  # slides inside
        ((16, 16), nn.Conv2d, (1, 1)),  # averaged down
        ((1, 1), nn.Conv2d, (1, 1)),  # interpolated up
        ((16, 2), nn.Conv2d, (1, 1)),
    ],
)
def test_regressor_reaches_the_teacher_by_the_published_way(
    student: tuple[int, int], kind: type[nn.Module], kernel: tuple[int, int]
) -> None:
    """Each ratio of sizes has its convolution; the output has the teacher's shape."""
    maps, target = random(N, 3, *student), random(N, 5, 4, 4)
    regressor = ConvRegressor(maps.shape, target.shape, nonnegative=True)

    assert isinstance(regressor.conv, kind)
    assert kernel == regressor.conv.kernel_size
    assert regressor(maps).shape == target.shape


@pytest.mark.parametrize("kind", ["hint", "simkd"])
def test_last_relu_is_there_when_the_teacher_ends_in_one(kind: str) -> None:
    """As published for teachers after a ReLU; a teacher with negative activations can be reached, too."""
    source, target = [random(N, 3, 4, 4)], [random(N, 8, 4, 4, seed=1)]
    for teacher, relu in (([target[0].relu()], True), (target, False)):
        term = build(kind, source, teacher)
        adapter = term.projector if kind == "simkd" else term.regressors[0]

        assert (adapter(source[0]) >= 0).all() == relu


def test_hint_is_the_squared_error_of_the_regressor() -> None:
    """The term is `hint_loss` of what its regressor makes of the student's map."""
    source, target = [random(N, 3, 8, 8)], [random(N, 5, 4, 4, seed=1)]
    term = build("hint", source, target)

    torch.testing.assert_close(
        call(term, source, target), hint_loss(term.regressors[0](source[0]), target[0])
    )


# --- VID ---


@pytest.mark.parametrize("initial", [1e-3, 1.0, 5.0, 200.0])
def test_vid_starts_at_the_given_variance(initial: float) -> None:
    """Every channel of the teacher has the variance that was asked for."""
    _, variance = GaussianRegressor(3, 5, initial)(random(2, 3, 1, 1))

    assert variance.tolist() == pytest.approx([initial] * 5, rel=1e-4)


# --- ReviewKD ---


def test_fusion_by_hand() -> None:
    """Unit weights and open gates of 1/2: output = (own + deeper, upsampled) / 2, at the asked size."""
    level = ABF(1, 1, 1, fuse=True).eval()
    with torch.no_grad():
        level.reduce[0].weight.fill_(1)
        level.expand[0].weight.copy_(torch.tensor([[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]]))
        level.gates[0].weight.zero_()
        level.gates[0].bias.zero_()
    own, deeper = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.full((1, 1, 1, 1), 10.0)

    output, fused = level(own, deeper, torch.Size([4, 4]))

    expected = (own.repeat_interleave(2, 2).repeat_interleave(2, 3) + 10) / 2
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=0)


def test_review_goes_from_deep_to_shallow() -> None:
    """A level's output knows its own and all deeper levels; the term is the sum of their HCL, sizes mixed."""
    source = [random(N, c, s, s, seed=s).requires_grad_() for c, s in ((4, 8), (6, 4), (8, 1))]
    target = [random(N, c, s, s, seed=s + 1) for c, s in ((5, 8), (7, 8), (9, 1))]
    term = build("review_kd", source, target)
    outputs: list[Tensor] = []
    for level in term.levels:
        level.register_forward_hook(lambda _module, _inputs, result: outputs.insert(0, result[0]))

    value = call(term, source, target)

    assert [tuple(o.shape) for o in outputs] == [tuple(t.shape) for t in target]
    torch.testing.assert_close(
        value, torch.stack([hcl_loss(o, t) for o, t in zip(outputs, target, strict=True)]).sum()
    )
    for i, output in enumerate(outputs):
        reached = torch.autograd.grad(output.square().sum(), source, retain_graph=True, allow_unused=True)
        assert [g is not None for g in reached] == [j >= i for j in range(3)]


def test_review_channels() -> None:
    """Fused maps are as wide as the student's deepest level, up to 512."""
    for width, middle in ((8, 8), (600, 512)):
        term = build("review_kd", [random(2, width)], [random(2, 3)])

        assert term.levels[0].reduce[0].out_channels == middle


# --- SimKD ---


def test_projector_is_what_the_term_trains_and_brings_maps_to_the_smaller_size() -> None:
    """The term is the squared error of `term.projector`'s output; the larger map is pooled, on either side."""
    for side, teacher_side in ((8, 4), (4, 8)):
        source, target = [random(N, 3, side, side)], [random(N, 8, teacher_side, teacher_side, seed=1)]
        term = build("simkd", source, target)
        projected = term.projector(source[0])

        assert projected.shape == (N, 8, 4, 4)
        torch.testing.assert_close(
            call(term, source, target), hint_loss(projected, F.adaptive_avg_pool2d(target[0], 4))
        )


def test_projector_is_rebuilt_from_its_arguments() -> None:
    """`arguments` survive JSON, and a projector built from them takes the state and gives the same map."""
    original = Projector(3, 8, (4, 4), factor=2, nonnegative=False).eval()
    rebuilt = Projector(**json.loads(json.dumps(original.arguments))).eval()
    rebuilt.load_state_dict(original.state_dict())
    maps = random(2, 3, 7, 7)

    assert torch.equal(rebuilt(maps), original(maps))
    assert [m.out_channels for m in original.layers if isinstance(m, nn.Conv2d)] == [4, 4, 8]


def test_projector_needs_torch_alone() -> None:
    """Its file is copied into the student's folder, where kdistill is not."""
    tree = ast.parse((Path(kdistill.__file__).parent / "models" / "projector.py").read_text())
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}

    assert {(m or "").partition(".")[0] for m in modules} == {"__future__", "typing", "torch"}


# --- CRD ---


def contrast(labels: Tensor = LABELS, **own: Any) -> Contrast:
    torch.manual_seed(0)
    return Contrast(3, 5, labels, **{"negatives": 8, "T": 0.07, "momentum": 0.5, "dim": 4, **own})


def test_nce_by_hand() -> None:
    """Odds 3 for the positive, 1/3 and 1 for negatives: -ln(3/4) - ln(3/4) - ln(1/2), mean over the samples."""
    odds = torch.tensor([[3.0, 1 / 3, 1.0], [3.0, 1 / 3, 1.0]])

    assert nce_loss(odds.log()).item() == pytest.approx(-2 * math.log(0.75) - math.log(0.5))


def test_crd_is_the_equation_in_loops() -> None:
    """Per side: p = exp(a . b / T) / Z against the other side's bank, with Z = n * mean over the batch at the start."""
    term = contrast()
    student, teacher, indices = random(N, 3), random(N, 5, seed=1), torch.tensor([3, 9, 0, 22, 17, 39])
    v_s = F.normalize(term.student_embedding(student), dim=1).detach()
    v_t = F.normalize(term.teacher_embedding(teacher), dim=1).detach()
    state = torch.get_rng_state()
    negatives = term.draw(indices)
    torch.set_rng_state(state)
    expected = 0.0
    for vectors, bank in ((v_s, term.teacher_bank), (v_t, term.student_bank)):
        chosen = [[int(indices[i]), *negatives[i].tolist()] for i in range(N)]
        raw = [[math.exp(float(vectors[i] @ bank[j]) / 0.07) for j in chosen[i]] for i in range(N)]
        z = SAMPLES * sum(map(sum, raw)) / (N * 9)
        noise = 8 / SAMPLES
        for row in raw:
            expected -= math.log(row[0] / z / (row[0] / z + noise)) / N
            expected -= sum(math.log(noise / (r / z + noise)) for r in row[1:]) / N

    assert term(student, teacher, indices).item() == pytest.approx(expected, rel=1e-4)


def test_negatives_are_of_other_classes_each_as_often() -> None:
    """Uniform over the samples of other classes; a sample without label is a class of its own."""
    labels = torch.tensor([2, 0, -1, 2, 1, -1, 0, 2])
    term = contrast(labels, negatives=5)
    drawn = torch.cat([term.draw(torch.arange(8)) for _ in range(2000)], dim=1)

    for i, label in enumerate(labels.tolist()):
        allowed = [j for j in range(8) if j != i and not (label >= 0 and labels[j] == label)]
        shares = drawn[i].bincount(minlength=8) / drawn.shape[1]

        assert shares.nonzero().flatten().tolist() == allowed
        assert shares[allowed].tolist() == pytest.approx([1 / len(allowed)] * len(allowed), abs=0.03)


def test_there_are_never_more_negatives_than_samples_of_other_classes() -> None:
    """40 samples in 4 classes leave 30; where labels are missing, all others."""
    assert contrast(negatives=16384).negatives == 30
    assert contrast(torch.full((40,), -1), negatives=16384).negatives == 39
    assert contrast(negatives=7).negatives == 7


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([[1.0, 0.0, 1.0]] * 9), torch.linspace(-1, 1, 9).view(9, 1), torch.linspace(-1, 1, 9)],
)
def test_without_classes_each_sample_is_its_own(labels: Tensor) -> None:
    """Several labels at once, or values: all other samples are negatives, also those with the same labels."""
    term = contrast(labels, negatives=500)
    drawn = torch.cat([term.draw(torch.arange(9)) for _ in range(50)], dim=1)

    assert term.negatives == 8
    for i in range(9):
        assert drawn[i].unique().tolist() == [j for j in range(9) if j != i]
    assert torch.isfinite(term(random(4, 3), random(4, 5, seed=1), torch.arange(4)))


def test_one_class_has_nothing_to_contrast() -> None:
    """An error that says so."""
    with pytest.raises(ConfigError) as error:
        contrast(torch.zeros(9, dtype=torch.int64))

    assert (
        str(error.value) == "crd contrasts samples of different classes, but all training samples are of one"
    )


def test_banks_move_to_the_embeddings_and_z_stays() -> None:
    """bank = momentum * bank + (1 - momentum) * embedding at norm 1, for the batch; Z is the first batch's."""
    term = contrast(momentum=0.75)
    before = {name: value.clone() for name, value in term.state_dict().items()}
    student, teacher, indices = random(2, 3), random(2, 5, seed=1), torch.tensor([7, 30])
    term(student, teacher, indices)
    z = term.log_z.clone()
    expected = before["student_bank"].clone()
    for vector, i in zip(term.student_embedding(student), indices, strict=True):
        mixed = 0.75 * expected[i] + 0.25 * vector / vector.norm()
        expected[i] = mixed / mixed.norm()
    torch.testing.assert_close(term.student_bank, expected.detach())
    assert (term.teacher_bank != before["teacher_bank"]).any(1).nonzero().flatten().tolist() == [7, 30]

    term(random(2, 3, seed=5), teacher, indices)
    assert torch.isfinite(z).all()
    assert torch.equal(term.log_z, z)

    term.eval()
    kept = term.student_bank.clone()
    term(student, teacher, indices)
    assert torch.equal(term.student_bank, kept)


def test_crd_goes_on_from_its_state() -> None:
    """State dict and random state together take a run up where it was, bit for bit."""
    term = contrast()
    student, teacher, indices = random(N, 3), random(N, 5, seed=1), torch.arange(N)
    term(student, teacher, indices)
    state, generator = copy.deepcopy(term.state_dict()), torch.get_rng_state()
    expected = term(student, teacher, indices)

    again = contrast(dim=4)
    again.load_state_dict(state)
    torch.set_rng_state(generator)

    assert torch.equal(again(student, teacher, indices), expected)
    assert set(state) == {
        *("student_bank", "teacher_bank", "log_z"),
        *(f"{side}_embedding.{part}" for side in ("student", "teacher") for part in ("weight", "bias")),
    }


def test_crd_gradient_is_the_slope() -> None:
    """Autograd agrees with finite differences, through both embeddings, once Z is known."""
    term = contrast(T=0.5).double()
    student, teacher, indices = random(3, 3).double(), random(3, 5, seed=1).double(), torch.tensor([0, 5, 10])
    term(student, teacher, indices)
    term.eval()

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        torch.manual_seed(3)
        value: Tensor = term(student, teacher, indices)
        return value

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), teacher.requires_grad_()))


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_crd_is_finite_on_extreme_embeddings(size: float) -> None:
    """Zero and saturated vectors, and the smallest temperature in use, give finite losses and gradients."""
    term = contrast(T=0.01)
    student = (size * random(N, 3).sign()).requires_grad_()
    for _ in range(3):
        value = term(student, size * random(N, 5, seed=1), torch.arange(N))
        value.backward()

    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


# --- what cannot be ---


@pytest.mark.parametrize("kind", TERMS)
def test_one_sample(kind: str) -> None:
    """Methods on relations and those with a batch norm over 1 x 1 maps say that they need more; others work."""
    pixels = (2, 2) if kind in {"at", "nst"} else ()
    source, target = [random(1, 6, *pixels)], [random(1, 10, *pixels, seed=1)]
    term = build(kind, source, target)
    if kind in {"sp", "rkd", "pkt"}:
        with pytest.raises(ConfigError, match=f"^{kind} compares the samples of a batch"):
            call(term, source, target)
    elif kind in {"hint", "review_kd", "simkd"}:
        with pytest.raises(ConfigError) as error:
            call(term, source, target)
        assert str(error.value) == (
            f"{kind} has a batch norm, which needs more than one value per channel: expected at least 2 samples"
            " where a map is 1 x 1, got 1; raise student.batch_size or lower student.optim.accumulate"
        )
    else:
        assert torch.isfinite(call(term, source, target))


@pytest.mark.parametrize("kind", ["at", "nst"])
def test_methods_on_pixels_need_some(kind: str) -> None:
    """Where all pairs have one pixel the value would be a constant; one pair among others may."""
    vector, single, maps = random(2, 3), random(2, 3, 1, 1), random(2, 3, 4, 4)

    for student, teacher in (([vector], [maps]), ([maps, maps], [single, vector])):
        with pytest.raises(ConfigError) as error:
            build(kind, student, teacher)
        assert str(error.value) == (
            f"{kind} compares the pixels of a map with each other, but these layers have one pixel:"
            " choose layers with larger maps, or a method on vectors (rkd, pkt, crd)"
        )
    assert (
        call(
            build(kind, [maps, single], [-maps.roll(1, 3), single]), [maps, single], [maps.roll(1, 3), single]
        )
        > 0
    )


def test_unknown_kind() -> None:
    """All kinds and the nearest one are named."""
    with pytest.raises(ConfigError) as error:
        build("reviewkd", [random(2, 3)], [random(2, 3)])

    assert str(error.value) == (
        "unknown feature method 'reviewkd': expected one of hint, at, sp, rkd, pkt, vid, nst, crd, review_kd, simkd."
        " Did you mean 'review_kd'?"
    )


@pytest.mark.parametrize("kind", ["crd", "simkd"])
def test_methods_of_one_pair(kind: str) -> None:
    """Two pairs are one too many."""
    with pytest.raises(ConfigError) as error:
        build(kind, [random(2, 3)] * 2, [random(2, 3)] * 2)

    assert str(error.value) == f"{kind} compares one pair of layers, got 2: choose one in layers"


def test_projector_cannot_be_narrower_than_one_channel() -> None:
    """A factor above the teacher's channels leaves no channel."""
    with pytest.raises(ConfigError) as error:
        build("simkd", [random(2, 3)], [random(2, 4)], factor=5)

    assert str(error.value) == "simkd: factor=5 is more than the 4 channels of the teacher's map"
