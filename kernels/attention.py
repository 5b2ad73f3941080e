"""Device functions of softmax attention with RMS-normalised queries and keys, which two kernels share.

The norms are taken inside: a norm is a factor a row times a factor a channel, so q . k needs the raw products, both
sums of squares, which the same pass over the channels gives, and the channel factors, which are put on the keys. All
keys of a query are held at once, so there is no running softmax; channels pass in chunks, so that any width fits.
"""

from __future__ import annotations

from teramind.kernels.language import inverse_rms, jit, load_channels, tl


@jit
def attention_weights(
    query_ptr,
    query_rows,
    query_live,
    key_ptr,
    key_rows,
    key_live,
    query_weight_ptr,
    key_weight_ptr,
    epsilon,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """softmax(norm(q) . norm(k) / CHANNELS) over the live keys: float32 (QUERIES, KEYS), zero for keys not live."""
    logits = tl.full((QUERIES, KEYS), 0.0, tl.float32)
    query_squares = tl.full((QUERIES,), 0.0, tl.float32)
    key_squares = tl.full((KEYS,), 0.0, tl.float32)
    for start in range(0, CHANNELS, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        inside = (channel < CHANNELS)[None, :]
        query = tl.load(
            query_ptr + query_rows[:, None] + channel[None, :], mask=query_live[:, None] & inside, other=0.0
        )
        key = tl.load(key_ptr + key_rows[:, None] + channel[None, :], mask=key_live[:, None] & inside, other=0.0)
        weight = load_channels(query_weight_ptr, channel, CHANNELS) * load_channels(key_weight_ptr, channel, CHANNELS)
        wide_query = query.to(tl.float32)
        wide_key = key.to(tl.float32)
        query_squares += tl.sum(wide_query * wide_query, axis=1)
        key_squares += tl.sum(wide_key * wide_key, axis=1)
        weighted = (wide_key * weight[None, :]).to(key.dtype)
        logits = tl.dot(query, tl.trans(weighted), acc=logits, input_precision="ieee")
    query_factor = inverse_rms(query_squares, CHANNELS, epsilon) / CHANNELS
    logits *= query_factor[:, None] * inverse_rms(key_squares, CHANNELS, epsilon)[None, :]
    logits = tl.where(key_live[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@jit
def store_weighted_values(
    out_ptr,
    out_rows,
    out_live,
    weights,
    value_ptr,
    value_rows,
    value_live,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Store ``weights`` times the values, a chunk of channels at a time."""
    rounded = weights.to(value_ptr.dtype.element_ty)
    for start in range(0, CHANNELS, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        inside = (channel < CHANNELS)[None, :]
        value = tl.load(
            value_ptr + value_rows[:, None] + channel[None, :], mask=value_live[:, None] & inside, other=0.0
        )
        result = tl.dot(rounded, value, input_precision="ieee")
        tl.store(
            out_ptr + out_rows[:, None] + channel[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=out_live[:, None] & inside,
        )
