"""Tables of embeddings."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def look_up(
    table: Float[Array, "entries width"], ids: Int[Array, "batch time"], pad_id: int
) -> Float[Array, "batch time width"]:
    """The rows of ids; no gradient goes through those of padding.

    As `torch.nn.Embedding(padding_idx=)`, with which the models of this form were trained: padding
    that a loss counts, or that a neighbour sees, does not move its row. Where the table is also the
    one that puts out words, that gradient stays.

    Args:
      table: an entry a row.
      ids: rows to take.
      pad_id: the row of padding.
    """
    rows = jnp.take(table, ids, axis=0)
    return jnp.where((ids == pad_id)[..., None], jax.lax.stop_gradient(rows), rows)
