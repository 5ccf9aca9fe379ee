// A whole layer of a decode step in one call: what lies between its products costs a few microseconds here and a few hundred as single
// operations of torch. Every row is computed by itself, in an order that doesn't depend on the others (see products.cpp).
#include "products.cpp"

namespace {

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

inline __m512 gelu(__m512 x) {  // with the error function of Abramowitz and Stegun, 7.1.26: 1.5e-7, absolute
    const __m512 one = _mm512_set1_ps(1.0f), at = _mm512_mul_ps(x, _mm512_set1_ps(0.70710678118654752f));
    const __m512 size = _mm512_abs_ps(at);
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    for (float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(factor));
    const __m512 rest = _mm512_mul_ps(_mm512_mul_ps(p, t), exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(size, size))));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    // 1 + erf: twice one less the rest on the right, the rest on the left
    const __m512 both = _mm512_mask_mov_ps(_mm512_sub_ps(_mm512_set1_ps(2.0f), rest), negative, rest);
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), both);
}

// states = layer norm of hidden; residual = states * alpha.
void normalise(const float* hidden, long width, const float* weight, const float* bias, float epsilon, float alpha, float* states,
               float* residual) {
    __m512 total = _mm512_setzero_ps();
    for (long k = 0; k < width; k += LANES) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(first(width - k), hidden + k));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / static_cast<float>(width));
    __m512 squares = _mm512_setzero_ps();
    for (long k = 0; k < width; k += LANES) {
        const __m512 off = _mm512_maskz_sub_ps(first(width - k), _mm512_maskz_loadu_ps(first(width - k), hidden + k), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(variance + epsilon)), by = _mm512_set1_ps(alpha);
    for (long k = 0; k < width; k += LANES) {
        const __mmask16 mask = first(width - k);
        const __m512 off = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, hidden + k), mean), factor);
        const __m512 found = _mm512_fmadd_ps(off, _mm512_maskz_loadu_ps(mask, weight + k), _mm512_maskz_loadu_ps(mask, bias + k));
        _mm512_mask_storeu_ps(states + k, mask, found);
        _mm512_mask_storeu_ps(residual + k, mask, _mm512_mul_ps(found, by));
    }
}

// By halves: the sines have the sign of theirs.
void rotate(const float* from, const float* cosines, const float* sines, long width, float* out) {
    const long middle = width / 2;
    for (long half = 0; half < 2; ++half)
        for (long k = 0; k < middle; k += LANES) {
            const __mmask16 mask = first(middle - k);
            const long at = half * middle + k, other = (1 - half) * middle + k;
            const __m512 turned = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + other), _mm512_maskz_loadu_ps(mask, sines + at));
            const __m512 found = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, from + at), _mm512_maskz_loadu_ps(mask, cosines + at), turned);
            _mm512_mask_storeu_ps(out + at, mask, found);
        }
}

// One head of one token over `length` columns of keys and values (length, width). scores: room for `length` rounded up to vectors.
void attend(const float* query, const float* keys, const float* values, long length, long width, float* scores, float* out) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    long column = 0;
    for (; column + 4 <= length; column += 4) {
        __m512 sums[4];
        UNROLL for (int n = 0; n < 4; ++n) sums[n] = _mm512_setzero_ps();
        for (long k = 0; k < width; k += LANES) {
            const __mmask16 mask = first(width - k);
            const __m512 one = _mm512_maskz_loadu_ps(mask, query + k);
            UNROLL for (int n = 0; n < 4; ++n)
                sums[n] = _mm512_fmadd_ps(one, _mm512_maskz_loadu_ps(mask, keys + (column + n) * width + k), sums[n]);
        }
        _mm_storeu_ps(scores + column, _mm_mul_ps(added(sums[0], sums[1], sums[2], sums[3]), _mm_set1_ps(scale)));
    }
    for (; column < length; ++column) {
        __m512 sum = _mm512_setzero_ps();
        for (long k = 0; k < width; k += LANES) {
            const __mmask16 mask = first(width - k);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, query + k), _mm512_maskz_loadu_ps(mask, keys + column * width + k), sum);
        }
        const __m512 none = _mm512_setzero_ps();
        scores[column] = _mm_cvtss_f32(added(sum, none, none, none)) * scale;
    }
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (long k = 0; k < length; k += LANES)
        most = _mm512_mask_max_ps(most, first(length - k), most, _mm512_maskz_loadu_ps(first(length - k), scores + k));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 total = _mm512_setzero_ps();
    for (long k = 0; k < length; k += LANES) {
        const __mmask16 mask = first(length - k);
        const __m512 weight = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + k), largest));
        total = _mm512_mask_add_ps(total, mask, total, weight);
        _mm512_mask_storeu_ps(scores + k, mask, weight);
    }
    const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    for (long k = 0; k < width; k += LANES) {
        const __mmask16 mask = first(width - k);
        __m512 sums[4];  // of every fourth column, so that one sum needn't wait for the one before
        UNROLL for (int n = 0; n < 4; ++n) sums[n] = _mm512_setzero_ps();
        for (column = 0; column + 4 <= length; column += 4)
            UNROLL for (int n = 0; n < 4; ++n)
                sums[n] = _mm512_fmadd_ps(_mm512_set1_ps(scores[column + n]), _mm512_maskz_loadu_ps(mask, values + (column + n) * width + k), sums[n]);
        for (; column < length; ++column)
            sums[0] = _mm512_fmadd_ps(_mm512_set1_ps(scores[column]), _mm512_maskz_loadu_ps(mask, values + column * width + k), sums[0]);
        const __m512 all = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        _mm512_mask_storeu_ps(out + k, mask, _mm512_mul_ps(all, share));
    }
}

}  // namespace

extern "C" {

// As native.py has them. kind: of glm_multiply, or 5 for 8 bits on both sides (scale: fp32).
struct GlmMatrix {
    long kind;
    const void *weight, *scale;
    long groups, rows, columns;
    const int32_t* row_sums;
    const float* bias;
};

struct GlmLayer {
    const float *first_weight, *first_bias, *second_weight, *second_bias;
    GlmMatrix mixed, dense, up, down;
    double alpha, epsilon;
    long heads;
};

// keys, values: of this layer, (slots, heads, columns, head_dim). Token i of each array is written to column places[i] of slots[i].
struct GlmStep {
    long tokens, capacity;
    const int64_t *slots, *places;
    const float *cosines, *sines;  // (tokens, head_dim); the sines with the sign of their half
    float *keys, *values;
    long threads;
};

// pair: (tokens, 2 * inner), of which the second half is the gate; out: (tokens, inner).
void glm_gated(const float* pair, long tokens, long inner, float* out, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens > 1)
    for (long token = 0; token < tokens; ++token) {
        const float *value = pair + token * 2 * inner, *gate = value + inner;
        for (long k = 0; k < inner; k += LANES) {
            const __mmask16 mask = first(inner - k);
            const __m512 found = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, value + k), gelu(_mm512_maskz_loadu_ps(mask, gate + k)));
            _mm512_mask_storeu_ps(out + token * inner + k, mask, found);
        }
    }
}

static void product(const GlmMatrix& by, const float* states, long tokens, const float* residual, float* out, int threads) {
#ifdef __AVX512VNNI__
    if (by.kind == 5)
        return glm_multiply8(by.weight, static_cast<const float*>(by.scale), by.row_sums, by.rows, by.columns, states, tokens, by.bias,
                             residual, out, threads);
#endif
    glm_multiply(by.kind, by.weight, by.scale, by.groups, by.rows, by.columns, states, tokens, by.bias, residual, out, threads);
}

// hidden, out: (tokens, width).
void glm_layer(const GlmLayer* layer, const GlmStep* step, const float* hidden, float* out) {
    const long tokens = step->tokens, width = layer->mixed.columns, heads = layer->heads, inner = layer->down.columns;
    const long own = layer->dense.columns, head = own / heads;
    const int threads = static_cast<int>(step->threads);
    const float alpha = static_cast<float>(layer->alpha), epsilon = static_cast<float>(layer->epsilon);
    Buffer<float> states = buffer<float>(tokens * width), residual = buffer<float>(tokens * width), middle = buffer<float>(tokens * width);
    Buffer<float> mixed = buffer<float>(tokens * 3 * own), context = buffer<float>(tokens * own);
    Buffer<float> pair = buffer<float>(tokens * 2 * inner), gated = buffer<float>(tokens * inner);
    auto norm = [&](const float* from, const float* weight, const float* bias) {
        for (long token = 0; token < tokens; ++token)
            normalise(from + token * width, width, weight, bias, epsilon, alpha, states.get() + token * width, residual.get() + token * width);
    };

    norm(hidden, layer->first_weight, layer->first_bias);
    product(layer->mixed, states.get(), tokens, nullptr, mixed.get(), threads);
    long longest = 0;
    for (long token = 0; token < tokens; ++token) longest = std::max(longest, static_cast<long>(step->places[token]) + 1);
#pragma omp parallel num_threads(threads)
    {
        Buffer<float> scores = buffer<float>(padded(longest, LANES)), query = buffer<float>(head);
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < tokens * heads; ++item) {
            const long token = item / heads, number = item % heads, place = step->places[token];
            const float* from = mixed.get() + (token * heads + number) * 3 * head;
            const float *cosines = step->cosines + token * head, *sines = step->sines + token * head;
            const long start = (step->slots[token] * heads + number) * step->capacity * head;
            float *keys = step->keys + start, *values = step->values + start;
            rotate(from, cosines, sines, head, query.get());
            rotate(from + head, cosines, sines, head, keys + place * head);
            std::memcpy(values + place * head, from + 2 * head, head * sizeof(float));
            attend(query.get(), keys, values, place + 1, head, scores.get(), context.get() + token * own + number * head);
        }
    }
    product(layer->dense, context.get(), tokens, residual.get(), middle.get(), threads);

    norm(middle.get(), layer->second_weight, layer->second_bias);
    product(layer->up, states.get(), tokens, nullptr, pair.get(), threads);
    glm_gated(pair.get(), tokens, inner, gated.get(), threads);
    product(layer->down, gated.get(), tokens, residual.get(), out, threads);
}
}
