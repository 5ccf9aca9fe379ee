// Attention of a prompt's tokens, head by head: scores and sums as matrix products in registers, each token by itself.
//
// Keys lie turned, (head_dim, columns), so that a vector is a number of 16 keys. A token's scores are summed over the head in one
// order, what it sees over the columns in one order, whatever tokens are computed with it.
#include "prompts.cpp"

namespace {

constexpr long QUERIES = 6;  // at a time, times 4 vectors: 24 sums
constexpr long SPAN = 4;     // vectors

inline __m512 cached(__mmask16 mask, const float* at) { return _mm512_maskz_loadu_ps(mask, at); }
inline __m512 cached(__mmask16 mask, const uint16_t* at) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at)); }

void keep(const float* from, long width, float* to) { std::memcpy(to, from, width * sizeof(float)); }
void keep(const float* from, long width, uint16_t* to) {  // as fp16
    for (long k = 0; k < width; k += LANES) {
        const __mmask16 mask = first(width - k);
        _mm256_mask_storeu_epi16(to + k, mask, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(mask, from + k), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

// Keys and values of one head, fp32. keys: (width, stride), turned; values: (columns, width).
struct Head {
    const float *keys, *values;
    long stride, width;
};

// scores (M, apart) of queries (M, step) with `count` columns from `begin` on.
template <int M>
void score(const Head& head, const float* queries, long step, long begin, long count, float* scores, long apart) {
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(head.width)));
    for (long column = 0; column < count; column += SPAN * LANES) {
        __m512 sums[M][SPAN];
        __mmask16 masks[SPAN];
        UNROLL for (int n = 0; n < SPAN; ++n) masks[n] = count - column - n * LANES > 0 ? first(count - column - n * LANES) : 0;
        UNROLL for (int m = 0; m < M; ++m)
            UNROLL for (int n = 0; n < SPAN; ++n) sums[m][n] = _mm512_setzero_ps();
        for (long k = 0; k < head.width; ++k) {
            const float* at = head.keys + k * head.stride + begin + column;
            __m512 some[SPAN];
            UNROLL for (int n = 0; n < SPAN; ++n) some[n] = _mm512_maskz_loadu_ps(masks[n], at + n * LANES);
            UNROLL for (int m = 0; m < M; ++m) {
                const __m512 one = _mm512_set1_ps(queries[m * step + k]);
                UNROLL for (int n = 0; n < SPAN; ++n) sums[m][n] = _mm512_fmadd_ps(one, some[n], sums[m][n]);
            }
        }
        UNROLL for (int m = 0; m < M; ++m)
            UNROLL for (int n = 0; n < SPAN; ++n)
                _mm512_mask_storeu_ps(scores + m * apart + column + n * LANES, masks[n], _mm512_mul_ps(sums[m][n], scale));
    }
}

inline __m512 exponential(__m512 x) {  // Cephes' expf: 2e-7, relative
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order nan stays nan
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factor));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// Weights in place of a token's scores; what they add up to.
float weigh(float* scores, long length) {
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (long k = 0; k < length; k += LANES)
        most = _mm512_mask_max_ps(most, first(length - k), most, _mm512_maskz_loadu_ps(first(length - k), scores + k));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (long k = 0; k < length; k += LANES) {
        const __mmask16 mask = first(length - k);
        const __m512 weight = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + k), largest));
        total = _mm512_mask_add_ps(total, mask, total, weight);
        _mm512_mask_storeu_ps(scores + k, mask, weight);
    }
    return _mm512_reduce_add_ps(total);
}

// Tokens that see the first `context` columns, then `own` from `begin` on, of which the last of M tokens sees all and each before it
// one less. queries, out: (M, step).
template <int M>
void attend_together(const Head& head, const float* queries, long step, long context, long begin, long own, float* scores, long apart, float* out) {
    score<M>(head, queries, step, 0, context, scores, apart);
    if (own) score<M>(head, queries, step, begin, own, scores + context, apart);
    __m512 shares[M];
    for (int m = 0; m < M; ++m) {
        const long hidden = own ? M - 1 - m : 0;
        shares[m] = _mm512_set1_ps(1.0f / weigh(scores + m * apart, context + own - hidden));
        std::fill(scores + m * apart + context + own - hidden, scores + m * apart + context + own, 0.0f);
    }
    for (long k = 0; k < head.width; k += SPAN * LANES) {
        __m512 sums[M][SPAN];
        __mmask16 masks[SPAN];
        UNROLL for (int n = 0; n < SPAN; ++n) masks[n] = head.width - k - n * LANES > 0 ? first(head.width - k - n * LANES) : 0;
        UNROLL for (int m = 0; m < M; ++m)
            UNROLL for (int n = 0; n < SPAN; ++n) sums[m][n] = _mm512_setzero_ps();
        auto add = [&](long from, long count, const float* weights) {
            for (long column = 0; column < count; ++column) {
                const float* at = head.values + (from + column) * head.width + k;
                __m512 some[SPAN];
                UNROLL for (int n = 0; n < SPAN; ++n) some[n] = _mm512_maskz_loadu_ps(masks[n], at + n * LANES);
                UNROLL for (int m = 0; m < M; ++m) {
                    const __m512 one = _mm512_set1_ps(weights[m * apart + column]);
                    UNROLL for (int n = 0; n < SPAN; ++n) sums[m][n] = _mm512_fmadd_ps(one, some[n], sums[m][n]);
                }
            }
        };
        add(0, context, scores);
        if (own) add(begin, own, scores + context);
        UNROLL for (int m = 0; m < M; ++m)
            UNROLL for (int n = 0; n < SPAN; ++n)
                _mm512_mask_storeu_ps(out + m * step + k + n * LANES, masks[n], _mm512_mul_ps(sums[m][n], shares[m]));
    }
}

// One head's keys and values as they are computed with, and room for scores.
class Room {
    Head head;
    Buffer<float> keys, values, scores;

   public:
    // keys, values: (columns, width), fp32 or fp16.
    template <typename Number>
    Room(const Number* from_keys, const Number* from_values, long columns, long width) {
        const long stride = padded(columns, LANES);
        keys = buffer<float>(padded(width, LANES) * stride);
        values = buffer<float>(columns * width);
        scores = buffer<float>(QUERIES * stride);
        head = {keys.get(), values.get(), stride, width};
        for (long column = 0; column < columns; column += LANES)
            for (long k = 0; k < width; k += LANES) {
                const __mmask16 mask = first(width - k);
                __m512i some[LANES];
                UNROLL for (int n = 0; n < LANES; ++n) {
                    some[n] = _mm512_setzero_si512();
                    if (column + n < columns) some[n] = _mm512_castps_si512(cached(mask, from_keys + (column + n) * width + k));
                }
                turn(some);
                UNROLL for (int n = 0; n < LANES; ++n) _mm512_store_si512(keys.get() + (k + n) * stride + column, some[n]);
            }
        for (long k = 0; k < columns * width; k += LANES)
            _mm512_mask_storeu_ps(values.get() + k, first(columns * width - k), cached(first(columns * width - k), from_values + k));
    }

    // count: 1 .. QUERIES; the others as attend_together has them.
    void attend(long count, const float* queries, long step, long context, long begin, long own, float* out) const {
        with_count(count, [&](auto number) {
            attend_together<decltype(number)::value>(head, queries, step, context, begin, own, scores.get(), head.stride, out);
        });
    }
};

// ---- As native_attention.py has them.

// Of a cache's layer: keys, values (slots, heads, capacity, head_dim), fp32, or fp16 if they are `halves`.
struct GlmCache {
    void *keys, *values;
    long halves, heads, capacity, width;
};

// A prompt of `context` tokens, then branches of so many each, from token `start` of a pass on; kept in `slot` unless that is below 0.
struct GlmSegment {
    long start, context, slot, branches;
    const int64_t* lengths;
};

template <typename Number>
void attend_segments(const GlmCache& cache, const GlmSegment* segments, long count, const float* query, const float* key, const float* value,
                     float* out, long threads) {
    const long width = cache.width, step = cache.heads * width;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long item = 0; item < count * cache.heads; ++item) {
        const GlmSegment& segment = segments[item / cache.heads];
        const long number = item % cache.heads, context = segment.context;
        const float *queries = query + segment.start * step + number * width, *new_keys = key + segment.start * step + number * width;
        const float* new_values = value + segment.start * step + number * width;
        float* results = out + segment.start * step + number * width;
        long columns = context;
        for (long branch = 0; branch < segment.branches; ++branch) columns += segment.lengths[branch];
        Buffer<Number> own;  // for what isn't kept
        Number *keys = static_cast<Number*>(cache.keys), *values = static_cast<Number*>(cache.values);
        if (segment.slot < 0) {
            own = buffer<Number>(2 * columns * width);
            keys = own.get(), values = own.get() + columns * width;
        } else {
            const long at = (segment.slot * cache.heads + number) * cache.capacity * width;
            keys += at, values += at;
        }
        for (long column = 0; column < columns; ++column) {
            keep(new_keys + column * step, width, keys + column * width);
            keep(new_values + column * step, width, values + column * width);
        }
        const Room room(keys, values, columns, width);
        for (long token = 0; token < context; token += QUERIES)
            room.attend(std::min(QUERIES, context - token), queries + token * step, step, context, 0, 0, results + token * step);
        long begin = context;
        for (long branch = 0; branch < segment.branches; begin += segment.lengths[branch++])
            for (long token = 0; token < segment.lengths[branch]; token += QUERIES) {
                const long some = std::min(QUERIES, segment.lengths[branch] - token), at = (begin + token) * step;
                room.attend(some, queries + at, step, context, begin, token + some, results + at);
            }
    }
}

template <typename Number>
void attend_ends(const GlmCache& cache, const int64_t* slots, const int64_t* places, long tokens, const float* query, const float* key,
                 const float* value, float* out, long threads) {
    const long width = cache.width;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long item = 0; item < tokens * cache.heads; ++item) {
        const long token = item / cache.heads, place = places[token];
        const long at = (slots[token] * cache.heads + item % cache.heads) * cache.capacity * width;
        Number *keys = static_cast<Number*>(cache.keys) + at, *values = static_cast<Number*>(cache.values) + at;
        keep(key + item * width, width, keys + place * width);
        keep(value + item * width, width, values + place * width);
        // As the only token of a branch.
        Room(keys, values, place + 1, width).attend(1, query + item * width, width, place, place, 1, out + item * width);
    }
}

}  // namespace

extern "C" {

// query, key, value, out: (tokens, heads, head_dim). Keys and values are rounded to the cache's type before anything sees them.
void glm_attend(const GlmCache* cache, const GlmSegment* segments, long count, const float* query, const float* key, const float* value,
                float* out, long threads) {
    if (cache->halves)
        attend_segments<uint16_t>(*cache, segments, count, query, key, value, out, threads);
    else
        attend_segments<float>(*cache, segments, count, query, key, value, out, threads);
}

// Tokens that end prompts in slots: token i goes to column places[i] of slots[i], as it did when the prompt was read, and sees all
// up to there.
void glm_attend_again(const GlmCache* cache, const int64_t* slots, const int64_t* places, long tokens, const float* query, const float* key,
                      const float* value, float* out, long threads) {
    if (cache->halves)
        attend_ends<uint16_t>(*cache, slots, places, tokens, query, key, value, out, threads);
    else
        attend_ends<float>(*cache, slots, places, tokens, query, key, value, out, threads);
}
}
