"""RQ-VAE: what each aid does to the use of codes, that training goes on where it stopped, what it refuses."""

import faiss
import numpy as np
import pytest
import torch

from sid_builder import cli
from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.quantizers import FitContext, load_quantizer
from sid_builder.quantizers.neural import balance, gradients
from sid_builder.quantizers.neural.codebooks import ResidualCodebooks
from sid_builder.quantizers.neural.kmeans_start import kmeans_codes
from sid_builder.quantizers.neural.training import Trainer, cpu_threads
from sid_builder.quantizers.rqvae import RQVAE, RQVAEConfig

SMALL = {"codes_per_level": 16, "hidden_sizes": [32], "latent_dim": 8, "steps": 120}
SMALL |= {"batch_size": 256, "learning_rate": 0.01}
PLAIN = {"kmeans_init": False, "revive_below": 0.0, "warm_up_share": 0.0}


def make(seed=0, **options):
    return RQVAE(cli.build_dataclass(RQVAEConfig, SMALL | options, "quantizer_args"), seed)


@pytest.fixture(scope="module")
def embeddings_MD():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 24))
    return (centres[rng.integers(20, size=800)] + 0.4 * rng.normal(size=(800, 24))).astype(np.float32)


@pytest.fixture
def context(embeddings_MD, tmp_path):
    catalog = Catalog.from_rows([{"item_id": str(i), "title": f"thing {i}"} for i in range(800)])
    interactions = Interactions.leave_one_out(["u"], [np.arange(10)])
    return FitContext(catalog, interactions, np.arange(800), tmp_path / "work")


def used_codes(quantizer, embeddings_MD):
    codes_NL = quantizer.encode(embeddings_MD)
    return [len(np.unique(codes_NL[:, level])) for level in range(codes_NL.shape[1])]


def error(quantizer, embeddings_MD):
    prepared_MD = quantizer.prepare(embeddings_MD)
    codes_NL = quantizer.encode(embeddings_MD)
    return ((prepared_MD - quantizer.reconstruct(codes_NL)) ** 2).sum() / (prepared_MD**2).sum()


def trainer_of(quantizer, embeddings_MD):
    return Trainer(
        quantizer.make_network(24),
        lambda rows_B: torch.from_numpy(quantizer.prepare(embeddings_MD[rows_B])),
        len(embeddings_MD),
        quantizer.config,
        0,
        quantizer.training_options(),
    )


def test_aids_keep_codes_that_plain_training_loses(embeddings_MD):
    shape = {"codes_per_level": 64, "learning_rate": 0.003, "steps": 120}
    plain, default = make(**shape | PLAIN), make(**shape)
    for quantizer in (plain, default):
        quantizer.fit(embeddings_MD)
    assert used_codes(default, embeddings_MD)[0] > 1.3 * used_codes(plain, embeddings_MD)[0]
    assert error(default, embeddings_MD) < 1.05 * error(plain, embeddings_MD)


def test_revival_alone_brings_codes_back(embeddings_MD):
    quantizer = make(**PLAIN | {"revive_below": 0.3, "revive_after": 10, "steps": 300})
    quantizer.fit(embeddings_MD)
    assert min(used_codes(quantizer, embeddings_MD)) >= 14


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "rotation"},
        {"sinkhorn": "all", "sinkhorn_epsilon": 0.05, "steps": 100},
        {"sinkhorn": "last"},
        {"cosine_levels": 2},
        {"curriculum": True, "stage_share": 0.2},
        {"balance_weight": 0.1},
        {"normalize": "standardize"},
        {"normalize": "none", "schedule": "constant"},
        {"schedule": "linear", "weight_decay": 0.01},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_option_learns(embeddings_MD, options):
    quantizer = make(**options)
    quantizer.fit(embeddings_MD)
    assert min(used_codes(quantizer, embeddings_MD)) > 10 and error(quantizer, embeddings_MD) < 0.5


def test_codes_do_not_depend_on_threads_nor_touch_global_state(embeddings_MD):
    before, state = torch.get_num_threads(), torch.get_rng_state()
    codes = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        faiss.omp_set_num_threads(count)
        quantizer = make(steps=40)
        quantizer.fit(embeddings_MD)
        codes.append(quantizer.encode(embeddings_MD))
        assert torch.get_num_threads() == count
    torch.set_num_threads(before)
    faiss.omp_set_num_threads(before)
    np.testing.assert_array_equal(codes[0], codes[1])
    np.testing.assert_array_equal(codes[0], codes[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_mapped_rows_give_the_same_codes(embeddings_MD, tmp_path):
    np.save(tmp_path / "rows.npy", embeddings_MD)
    mapped_MD = np.load(tmp_path / "rows.npy", mmap_mode="r")
    quantizer, again = make(steps=20), make(steps=20)
    quantizer.fit(embeddings_MD)
    again.fit(mapped_MD)
    np.testing.assert_array_equal(again.encode(mapped_MD), quantizer.encode(embeddings_MD))


@pytest.mark.parametrize("options", [{}, {"curriculum": True, "stage_share": 0.3}])
def test_interrupted_training_goes_on_exactly(embeddings_MD, context, monkeypatch, options):
    straight = make(**options)
    straight.fit(embeddings_MD)

    def interrupt(self, loss, bar):
        if self.step >= 70:
            raise KeyboardInterrupt
        look(self, loss, bar)

    look = Trainer._look
    monkeypatch.setattr(Trainer, "_look", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(**options).fit(embeddings_MD, context)
    monkeypatch.undo()
    steps = []
    take = Trainer._take_step
    monkeypatch.setattr(Trainer, "_take_step", lambda self: steps.append(self.step) or take(self))
    resumed = make(**options)
    resumed.fit(embeddings_MD, context)
    assert steps[0] == 66 and len(steps) == 120 - 66  # a checkpoint every 6 steps
    for name, weights in straight.network.state_dict().items():
        assert torch.equal(weights, resumed.network.state_dict()[name]), name
    steps.clear()
    make(**options).fit(embeddings_MD, context)  # ended: nothing to do
    make(seed=1, **options).fit(embeddings_MD, context)  # another seed: from the start
    assert len(steps) == 120


def test_saved_and_loaded_by_type(embeddings_MD, tmp_path):
    quantizer = make(normalize="standardize", codes_per_level=[16, 8], levels=2, steps=20)
    quantizer.fit(embeddings_MD)
    quantizer.save(tmp_path)
    back = load_quantizer(tmp_path)
    assert isinstance(back, RQVAE) and back.config == quantizer.config
    np.testing.assert_array_equal(back.prepare(embeddings_MD), quantizer.prepare(embeddings_MD))
    np.testing.assert_array_equal(back.encode(embeddings_MD), quantizer.encode(embeddings_MD))


def test_standardised_columns(embeddings_MD):
    skewed_MD = embeddings_MD * np.linspace(0, 3, 24, dtype=np.float32) + 5  # the first column is constant
    quantizer = make(normalize="standardize", steps=5)
    quantizer.fit(skewed_MD)
    prepared_MD = quantizer.prepare(skewed_MD)
    np.testing.assert_allclose(prepared_MD.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(prepared_MD.std(axis=0)[1:], 1, atol=1e-4)
    assert np.ptp(prepared_MD[:, 0]) == 0


class TestParts:
    def test_gradient_passes_straight_through(self):
        latents_BE = torch.randn(5, 4, requires_grad=True)
        quantized_BE, weight_BE = torch.randn(5, 4), torch.randn(5, 4)
        (gradients.straight_through(latents_BE, quantized_BE) * weight_BE).sum().backward()
        torch.testing.assert_close(latents_BE.grad, weight_BE)

    def test_rotation_keeps_the_angle_between_gradient_and_code(self):
        generator = torch.Generator().manual_seed(0)
        latents_BE, quantized_BE, weight_BE = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
        latents_BE.requires_grad_()
        passed_BE = gradients.rotate(latents_BE, quantized_BE)
        torch.testing.assert_close(passed_BE, quantized_BE)
        (passed_BE * weight_BE).sum().backward()
        cosine = torch.nn.functional.cosine_similarity
        torch.testing.assert_close(cosine(latents_BE.grad, latents_BE), cosine(weight_BE, quantized_BE))
        scale_B = quantized_BE.norm(dim=1) / latents_BE.norm(dim=1)
        torch.testing.assert_close(latents_BE.grad.norm(dim=1), scale_B * weight_BE.norm(dim=1))

    def test_rotation_of_a_zero_vector_is_finite(self):
        latents_BE = torch.zeros(1, 4, requires_grad=True)
        gradients.rotate(latents_BE, torch.ones(1, 4)).sum().backward()
        assert torch.isfinite(latents_BE.grad).all()

    def test_following_the_balance_gradient_evens_out_use(self):
        generator = torch.Generator().manual_seed(0)
        rows_BE = torch.randn(200, 4, generator=generator)
        codes_KE = torch.nn.Parameter(torch.randn(8, 4, generator=generator) + torch.tensor([3.0, 0, 0, 0]))

        def kl():
            return balance.kl_to_uniform(torch.cdist(rows_BE, codes_KE) ** 2, 0.5)

        first = kl().item()
        for _ in range(50):
            codes_KE.grad = None
            kl().backward()
            codes_KE.data -= 0.3 * codes_KE.grad
        assert 0 <= kl().item() < 0.3 * first
        assert float(balance.kl_to_uniform(torch.ones(10, 8), 1.0)) == pytest.approx(0, abs=1e-6)

    def test_sinkhorn_spreads_what_the_nearest_code_does_not(self):
        generator = torch.Generator().manual_seed(0)
        rows_BE = torch.randn(320, 4, generator=generator)
        codes_KE = torch.randn(16, 4, generator=generator) * torch.linspace(0.1, 4, 16)[:, None]
        distance_BK = torch.cdist(rows_BE, codes_KE) ** 2
        nearest_K = torch.bincount(distance_BK.argmin(dim=1), minlength=16)
        spread_K = torch.bincount(balance.sinkhorn_assignment(distance_BK, 0.003), minlength=16)
        assert nearest_K.max() > 80 and nearest_K.min() == 0
        assert spread_K.min() >= 5 and spread_K.max() <= 30
        scaled = balance.sinkhorn_assignment(distance_BK * 1e4, 0.003)  # no unit to tune epsilon to
        assert (scaled == balance.sinkhorn_assignment(distance_BK, 0.003)).float().mean() > 0.99

    def test_only_codes_that_stay_unused_are_dead(self):
        usage = balance.CodeUsage([4])
        for step in range(600):
            usage.update(torch.tensor([0, 1, 2, 2 if step % 20 else 3]), 0, 0.025)
        assert len(usage.dead(0, 100)) == 0  # 3 is rare, but alive
        for _ in range(700):
            usage.update(torch.tensor([0, 1, 2, 2]), 0, 0.025)
        assert usage.dead(0, 100).tolist() == [3] and usage.perplexity(0) < 3.1
        usage.restart(usage.dead(0, 100), 0)
        assert len(usage.dead(0, 1)) == 0

    def test_badly_coded_rows_are_drawn(self):
        error_B = torch.tensor([0.0, 5.0, 0.0, 1.0])
        rows = balance.high_error_rows(error_B, 3, np.random.default_rng(0))
        assert sorted(rows.tolist()) == [1, 3]
        assert len(balance.high_error_rows(torch.zeros(4), 2, np.random.default_rng(0))) == 0

    def test_cosine_levels_ignore_length(self):
        codebooks = ResidualCodebooks([8, 8], 4, torch.Generator().manual_seed(0), cosine_levels=1)
        rows_BE = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
        first, scaled = codebooks(rows_BE, 2).codes_BA, codebooks(rows_BE * 0.01, 2).codes_BA
        assert torch.equal(first[:, 0], scaled[:, 0]) and not torch.equal(first[:, 1], scaled[:, 1])


def test_codes_by_angle_have_the_length_of_their_rows():
    directions_KE = torch.eye(4)
    length_M1 = torch.linspace(1, 3, 200)[:, None]
    residual_ME = length_M1 * directions_KE[torch.arange(200) % 4]
    codes_KE, rest = kmeans_codes(residual_ME, 4, seed=0, by_angle=True)
    order = codes_KE.argmax(dim=1).argsort()
    torch.testing.assert_close(codes_KE[order], 2 * directions_KE, atol=0.02, rtol=0)
    assert rest.item() == pytest.approx(0.5, abs=0.01)


def test_a_level_of_the_curriculum_waits_for_its_stage(embeddings_MD):
    trainer = trainer_of(make(curriculum=True, stage_share=0.3, warm_up_share=0.1), embeddings_MD)
    assert [trainer.active_levels(step) for step in (0, 12, 48, 84)] == [0, 1, 2, 3]
    assert [trainer.active_levels(step) for step in (11, 47, 83, 119)] == [0, 1, 2, 3]
    second = trainer.network.codebooks.codes[1].detach().clone()
    with cpu_threads(1):
        for trainer.step in range(48):
            trainer._take_step()
        assert torch.equal(trainer.network.codebooks.codes[1], second)
        trainer.step = 48
        trainer._take_step()
    assert not torch.equal(trainer.network.codebooks.codes[1], second)


def test_a_revived_code_takes_a_row_and_loses_its_momentum(embeddings_MD):
    trainer = trainer_of(make(warm_up_share=0.0), embeddings_MD)
    trainer._take_step()
    codes = trainer.network.codebooks.codes[0]
    codes.data[5] = 1e3  # out of reach
    trainer.usage.share(0)[5] = 0.0
    trainer.usage.get_buffer("starved_0")[5] = 99
    trainer.step = 1
    trainer._take_step()
    assert codes[5].norm() < 100
    assert (trainer.optimizer.state[codes]["exp_avg"][5] == 0).all()
    assert (trainer.optimizer.state[codes]["exp_avg"][4] != 0).any()


def test_a_loss_that_is_no_number_stops_training(embeddings_MD):
    with pytest.raises(
        InputError,
        match=r"quantizer_args\.learning_rate: the loss is \w+ in epoch \d+ \(step \d+\) at 1e\+30",
    ):
        make(learning_rate=1e30).fit(embeddings_MD)


def test_vectors_that_cannot_be_learnt_from_are_named(embeddings_MD):
    with pytest.raises(
        InputError, match="16 codes for 10 items with 10 distinct embeddings; give at most 10"
    ):
        make().fit(embeddings_MD[:10])
    with pytest.raises(InputError, match="16 codes for 40 items with 1 distinct embeddings"):
        make().fit(np.ones((40, 24), dtype=np.float32))
    broken_MD = embeddings_MD.copy()
    broken_MD[30, 2] = np.nan
    with pytest.raises(InputError, match="embeddings: row 30 holds NaN or infinite values"):
        make().fit(broken_MD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes_per_level": [16, 8]}, r"codes_per_level: \[16, 8\] does not fit levels=3"),
        ({"codes_per_level": 0}, "codes_per_level: 0 holds a size below 1"),
        ({"steps": 0}, "steps: 0 is below 1; give at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not above 0"),
        ({"beta": -0.1}, "beta: -0.1 is negative"),
        ({"hidden_sizes": []}, r"hidden_sizes: \[\]; give at least one width, all above 0"),
        ({"latent_dim": 0}, "latent_dim: 0 is below 1; give at least 1"),
        (
            {"warm_up_share": 1.0},
            "warm_up_share: 1.0 leaves the last level no training; give 0 or more, below 1",
        ),
        ({"warm_up_share": 0.4, "curriculum": True, "stage_share": 0.3}, "warm_up_share: 0.4 .* below 0.4"),
        ({"cosine_levels": 3}, "cosine_levels: 3 of 3 levels; .* so give 0 to 2"),
        (
            {"curriculum": True, "stage_share": 0.5},
            "stage_share: 0.5 leaves the last of 3 levels no training",
        ),
        ({"gradient": "gumbel"}, "gradient: 'gumbel' is not one of"),
        ({"signal": "tags"}, r"signal: 'tags' is not known; use one of \['cooccurrence'\]"),
        ({"signal_args": {"window": 2}}, "signal_args: {'window': 2} have no effect without a signal"),
        (
            {"signal": "cooccurrence", "signal_args": {"windows": 2}},
            "signal_args.windows: unknown key; did you mean 'window'",
        ),
        ({"signal": "cooccurrence", "signal_weight": 0.0}, "signal_weight: 0.0 is not above 0"),
    ],
)
def test_options_that_contradict_are_named(options, message):
    with pytest.raises(InputError, match=r"quantizer_args\." + message):
        make(**options)
