"""The face of gradient-trained quantizers: preparing, encoding, saving. Torch is imported when it is used.

Legend: N items, M rows learnt from, D dimensions, C rows of a chunk, L levels, K codes of a level.
"""

import dataclasses
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sid_builder.quantizers import FitContext
from sid_builder.quantizers.chunked import ChunkedQuantizer, check_enough
from sid_builder.quantizers.neural.config import check_codebooks
from sid_builder.quantizers.row_chunks import (
    CHUNK_ROWS,
    check_finite,
    check_matrix,
    in_order,
    pick_device,
    ranges,
    read_chunk,
    read_rows,
    unit_rows,
)

if TYPE_CHECKING:
    import torch

    from sid_builder.quantizers.neural.codebooks import QuantizedAutoencoder
    from sid_builder.quantizers.neural.training import AutoencoderOptions

# Rows a checkpoint's name knows the data by, beside its shape.
_FINGERPRINT_ROWS = 4096


class GradientTrained(ChunkedQuantizer):
    """A quantizer whose codebooks are trained by gradient, with or without an autoencoder around them.

    On CPU the codes depend on config, seed and data alone, not on the machine's thread count; on CUDA, sums
    in another order may change them from run to run.
    """

    def __init__(self, config: Any, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.level_sizes = check_codebooks(config)
        self.network: QuantizedAutoencoder | None = None
        self.shift_D = self.scale_D = np.empty(0, dtype=np.float32)  # only with normalize: standardize

    @abstractmethod
    def make_network(self, dim: int) -> "QuantizedAutoencoder":
        """An untrained network for inputs of `dim` dimensions, a function of config and seed."""

    def training_options(self) -> "AutoencoderOptions":
        from sid_builder.quantizers.neural.training import AutoencoderOptions

        return AutoencoderOptions()

    def make_signal(self, context: FitContext | None) -> Any:
        """The signal's module, or None."""
        return None

    def fit(self, embeddings_MD: np.ndarray, context: FitContext | None = None) -> None:
        """Train on float32 [M, D], which may be memory-mapped.

        With a `context.work_dir` the state is kept there from time to time and at the end; the same call goes
        on from it.

        Raises:
            InputError: if a level has more codes than there are distinct vectors, if a value or the loss is
            not finite, or if the signal has nothing to learn from.
        """
        check_matrix(embeddings_MD)
        check_enough(embeddings_MD, max(self.level_sizes))
        for low, high in ranges(len(embeddings_MD), CHUNK_ROWS):
            check_finite(embeddings_MD[low:high], low)
        device = pick_device(self.config.device)
        signal = self.make_signal(context)
        # Imported here: torch takes seconds, and arguments are checked without it.
        from sid_builder.quantizers.neural.training import Trainer

        if self.config.normalize == "standardize":
            self.shift_D, self.scale_D = _moments(embeddings_MD)
        self.network = self.make_network(embeddings_MD.shape[1]).to(device)
        checkpoint = None
        if context is not None and context.work_dir is not None:
            name = f"{self.type_name}-{self._fingerprint(embeddings_MD, context)}.safetensors"
            checkpoint = context.work_dir / name
        Trainer(
            self.network,
            self._reader(embeddings_MD, device),
            len(embeddings_MD),
            self.config,
            self.seed,
            self.training_options(),
            signal,
            checkpoint,
        ).run()
        self.network.requires_grad_(False)

    def prepare(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Float32 [N, D] as it is quantized: rows of length 1 (input, residuals), columns of mean 0 and
        variance 1 (standardize), or as given (none)."""
        import torch

        return read_rows(embeddings_ND, self._prepare, torch.device("cpu")).numpy()

    @property
    def num_dims(self) -> int:
        return self._fitted().num_dims

    def chunk_encoder(self, device: "torch.device") -> Callable[["torch.Tensor"], "torch.Tensor"]:
        network, depth = self._fitted(), len(self.level_sizes)
        return lambda chunk_CD: network.codebooks(network.encoder(self._prepare(chunk_CD)), depth).codes_BA

    def reconstruct(self, codes_NL: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Float32 [N, D] in the space of `prepare`: the decoder's output for the first `levels` codes."""
        import torch

        network, device = self._fitted(), self._device()
        depth = len(self.level_sizes) if levels is None else levels
        rows_ND = np.empty((len(codes_NL), self.num_dims), dtype=np.float32)

        def decode(part: tuple[int, int]) -> None:
            low, high = part
            codes_CL = np.zeros((CHUNK_ROWS, codes_NL.shape[1]), dtype=np.int64)
            codes_CL[: high - low] = codes_NL[low:high]
            sum_CE = network.codebooks.lookup(torch.from_numpy(codes_CL).to(device), depth)
            rows_ND[low:high] = network.decoder(sum_CE)[: high - low].cpu().numpy()

        for _ in in_order(decode, ranges(len(codes_NL), CHUNK_ROWS), device):
            pass
        return rows_ND

    def last_level_distances(self, embeddings_ND: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        """Squared distance, in the latent space, of what all but the last code leave to every last code,
        float32 [N, K]."""
        import torch

        network, device, last = self._fitted(), self._device(), len(self.level_sizes) - 1
        distance_NK = np.empty((len(embeddings_ND), self.level_sizes[last]), dtype=np.float32)

        def measure(part: tuple[int, int]) -> None:
            low, high = part
            chunk_CD = read_chunk(embeddings_ND, low, high, CHUNK_ROWS, device)
            codes_CL = np.zeros((CHUNK_ROWS, last + 1), dtype=np.int64)
            codes_CL[: high - low] = codes_NL[low:high]
            residual_CE = network.codebooks.residual(
                network.encoder(self._prepare(chunk_CD)), torch.from_numpy(codes_CL).to(device), last
            )
            distance_CK = network.codebooks.distances(residual_CE, last).clamp_min(0)
            distance_NK[low:high] = distance_CK[: high - low].cpu().numpy()

        for _ in in_order(measure, ranges(len(embeddings_ND), CHUNK_ROWS), device):
            pass
        return distance_NK

    def arrays(self) -> dict[str, np.ndarray]:
        weights = self._fitted().state_dict()
        arrays = {f"network/{key}": value.cpu().numpy() for key, value in weights.items()}
        if self.config.normalize == "standardize":
            arrays |= {"input/shift": self.shift_D, "input/scale": self.scale_D}
        return arrays | {"input/dims": np.array([self.num_dims])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        import torch

        if self.config.normalize == "standardize":
            self.shift_D, self.scale_D = arrays["input/shift"], arrays["input/scale"]
        network = self.make_network(int(arrays["input/dims"][0]))
        names = [f"network/{key}" for key in network.state_dict()]
        network.load_state_dict(
            {name.removeprefix("network/"): torch.from_numpy(arrays[name]) for name in names}
        )
        self.network = network.to(pick_device(self.config.device)).requires_grad_(False)

    def _fitted(self) -> "QuantizedAutoencoder":
        assert self.network is not None, "fit or load first"
        return self.network

    def _device(self) -> "torch.device":
        return self._fitted().codebooks.scales.device

    def _prepare(self, chunk_CD: "torch.Tensor") -> "torch.Tensor":
        if self.config.normalize == "none":
            return chunk_CD
        if self.config.normalize == "standardize":
            return (chunk_CD - chunk_CD.new_tensor(self.shift_D)) * chunk_CD.new_tensor(self.scale_D)
        return unit_rows(chunk_CD)

    def _reader(
        self, embeddings_MD: np.ndarray, device: "torch.device"
    ) -> Callable[[np.ndarray], "torch.Tensor"]:
        """Prepared rows by their numbers."""
        import torch

        def read(rows_B: np.ndarray) -> "torch.Tensor":
            rows_BD = np.asarray(embeddings_MD[rows_B], dtype=np.float32)
            return self._prepare(torch.from_numpy(rows_BD).to(device))

        return read

    def _fingerprint(self, embeddings_MD: np.ndarray, context: FitContext) -> str:
        """Tells apart checkpoints of other options, seeds or data (by shape and some thousand rows)."""
        options = {"config": dataclasses.asdict(self.config), "seed": self.seed, "shape": embeddings_MD.shape}
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        rows = np.unique(np.linspace(0, len(embeddings_MD) - 1, _FINGERPRINT_ROWS).astype(np.int64))
        interactions = context.interactions
        train = (interactions.items_I, *interactions.bounds_of("train"))
        for values in (embeddings_MD[rows], context.items_M, *train):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]


def _moments(embeddings_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, 1 / standard deviation) per column, float32 [D]; a constant column is only centred."""
    sum_D, squares_D = np.zeros((2, embeddings_MD.shape[1]))
    for low, high in ranges(len(embeddings_MD), CHUNK_ROWS):
        rows_CD = np.asarray(embeddings_MD[low:high], dtype=np.float64)
        sum_D += rows_CD.sum(axis=0)
        squares_D += (rows_CD**2).sum(axis=0)
    mean_D = sum_D / len(embeddings_MD)
    variance_D = squares_D / len(embeddings_MD) - mean_D**2
    scale_D = 1 / np.sqrt(np.where(variance_D > 1e-12, variance_D, 1.0))
    return mean_D.astype(np.float32), scale_D.astype(np.float32)
