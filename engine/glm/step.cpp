// A whole layer of a decode step in one call, and what lies before and behind a prompt's attention: between the products it costs a
// few microseconds here and a few hundred as single operations of torch. Every row is computed by itself, in an order that doesn't
// depend on the others (see products.cpp).
#include "attention.cpp"

namespace {

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
template <typename Cached>
void attend(const float* query, const Cached* keys, const Cached* values, long length, long width, float* scores, float* out) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    long column = 0;
    for (; column + 4 <= length; column += 4) {
        __m512 sums[4];
        UNROLL for (int n = 0; n < 4; ++n) sums[n] = _mm512_setzero_ps();
        for (long k = 0; k < width; k += LANES) {
            const __mmask16 mask = first(width - k);
            const __m512 one = _mm512_maskz_loadu_ps(mask, query + k);
            UNROLL for (int n = 0; n < 4; ++n)
                sums[n] = _mm512_fmadd_ps(one, cached(mask, keys + (column + n) * width + k), sums[n]);
        }
        _mm_storeu_ps(scores + column, _mm_mul_ps(added(sums[0], sums[1], sums[2], sums[3]), _mm_set1_ps(scale)));
    }
    for (; column < length; ++column) {
        __m512 sum = _mm512_setzero_ps();
        for (long k = 0; k < width; k += LANES) {
            const __mmask16 mask = first(width - k);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, query + k), cached(mask, keys + column * width + k), sum);
        }
        const __m512 none = _mm512_setzero_ps();
        scores[column] = _mm_cvtss_f32(added(sum, none, none, none)) * scale;
    }
    const __m512 share = _mm512_set1_ps(1.0f / weigh(scores, length));
    for (long k = 0; k < width; k += LANES) {
        const __mmask16 mask = first(width - k);
        __m512 sums[4];  // of every fourth column, so that one sum needn't wait for the one before
        UNROLL for (int n = 0; n < 4; ++n) sums[n] = _mm512_setzero_ps();
        for (column = 0; column + 4 <= length; column += 4)
            UNROLL for (int n = 0; n < 4; ++n)
                sums[n] = _mm512_fmadd_ps(_mm512_set1_ps(scores[column + n]), cached(mask, values + (column + n) * width + k), sums[n]);
        for (; column < length; ++column)
            sums[0] = _mm512_fmadd_ps(_mm512_set1_ps(scores[column]), cached(mask, values + column * width + k), sums[0]);
        const __m512 all = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        _mm512_mask_storeu_ps(out + k, mask, _mm512_mul_ps(all, share));
    }
}

// The same of a token whose query, key and value lie side by side in `mixed`; its own column is written first, at `place`.
template <typename Cached>
void attend_at(const float* mixed, const float* cosines, const float* sines, Cached* keys, Cached* values, long place, long width,
               float* scores, float* turned, float* out) {
    rotate(mixed + width, cosines, sines, width, turned);
    keep(turned, width, keys + place * width);
    keep(mixed + 2 * width, width, values + place * width);
    rotate(mixed, cosines, sines, width, turned);
    attend(turned, keys, values, place + 1, width, scores, out);
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

// keys, values: of a layer, (slots, heads, columns, head_dim), fp32, or fp16 if they are `halves`; those of the next layer begin `apart`
// bytes behind. Token i of each array is written to column places[i] of slots[i].
struct GlmStep {
    long tokens, capacity;
    const int64_t *slots, *places;
    const float *cosines, *sines;  // (tokens, head_dim); the sines with the sign of their half
    char *keys, *values;
    long apart, halves, threads;
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

static void product(const GlmMatrix& by, const float* states, long tokens, const float* residual, float* out, int threads, bool prompt) {
#ifdef __AVX512VNNI__
    if (by.kind == 5)
        return glm_multiply8(by.weight, static_cast<const float*>(by.scale), by.row_sums, by.rows, by.columns, states, tokens, by.bias,
                             residual, out, threads);
#endif
    (prompt ? glm_multiply_prompt : glm_multiply)(by.kind, by.weight, by.scale, by.groups, by.rows, by.columns, states, tokens, by.bias,
                                                  residual, out, threads);
}

static void norm(const GlmLayer* layer, bool first, const float* hidden, long tokens, float* states, float* residual, int threads) {
    const long width = layer->mixed.columns;
    const float *weight = first ? layer->first_weight : layer->second_weight, *bias = first ? layer->first_bias : layer->second_bias;
    const float epsilon = static_cast<float>(layer->epsilon), alpha = static_cast<float>(layer->alpha);
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (long token = 0; token < tokens; ++token)
        normalise(hidden + token * width, width, weight, bias, epsilon, alpha, states + token * width, residual + token * width);
}

// A prompt's layer up to its attention. residual: (tokens, width), for glm_behind; query, key, value: (tokens, heads, head_dim).
void glm_before(const GlmLayer* layer, const float* hidden, long tokens, const float* cosines, const float* sines, float* residual,
                float* query, float* key, float* value, long threads_) {
    const int threads = static_cast<int>(threads_);
    const long heads = layer->heads, own = layer->dense.columns, head = own / heads;
    Buffer<float> states = buffer<float>(tokens * layer->mixed.columns), mixed = buffer<float>(tokens * 3 * own);
    norm(layer, true, hidden, tokens, states.get(), residual, threads);
    product(layer->mixed, states.get(), tokens, nullptr, mixed.get(), threads, true);
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (long token = 0; token < tokens; ++token)
        for (long number = 0; number < heads; ++number) {
            const long at = (token * heads + number) * head;
            const float* from = mixed.get() + 3 * at;
            rotate(from, cosines + token * head, sines + token * head, head, query + at);
            rotate(from + head, cosines + token * head, sines + token * head, head, key + at);
            std::memcpy(value + at, from + 2 * head, head * sizeof(float));
        }
}

// What lies behind attention. context: (tokens, heads * head_dim); out: (tokens, width).
static void behind(const GlmLayer* layer, const float* context, long tokens, const float* residual, float* out, int threads, bool prompt) {
    const long width = layer->mixed.columns, inner = layer->down.columns;
    Buffer<float> states = buffer<float>(tokens * width), middle = buffer<float>(tokens * width), beside = buffer<float>(tokens * width);
    Buffer<float> pair = buffer<float>(tokens * 2 * inner), gated = buffer<float>(tokens * inner);
    product(layer->dense, context, tokens, residual, middle.get(), threads, prompt);
    norm(layer, false, middle.get(), tokens, states.get(), beside.get(), threads);
    product(layer->up, states.get(), tokens, nullptr, pair.get(), threads, prompt);
    glm_gated(pair.get(), tokens, inner, gated.get(), threads);
    product(layer->down, gated.get(), tokens, beside.get(), out, threads, prompt);
}

// The rest of a prompt's layer.
void glm_behind(const GlmLayer* layer, const float* context, long tokens, const float* residual, float* out, long threads) {
    behind(layer, context, tokens, residual, out, static_cast<int>(threads), true);
}

static void step_layer(const GlmLayer* layer, const GlmStep* step, char* keys, char* values, const float* hidden, float* out) {
    const long tokens = step->tokens, width = layer->mixed.columns, heads = layer->heads;
    const long own = layer->dense.columns, head = own / heads;
    const int threads = static_cast<int>(step->threads);
    Buffer<float> states = buffer<float>(tokens * width), residual = buffer<float>(tokens * width);
    Buffer<float> mixed = buffer<float>(tokens * 3 * own), context = buffer<float>(tokens * own);

    norm(layer, true, hidden, tokens, states.get(), residual.get(), threads);
    product(layer->mixed, states.get(), tokens, nullptr, mixed.get(), threads, false);
    long longest = 0;
    for (long token = 0; token < tokens; ++token) longest = std::max(longest, static_cast<long>(step->places[token]) + 1);
#pragma omp parallel num_threads(threads)
    {
        Buffer<float> scores = buffer<float>(padded(longest, LANES)), turned = buffer<float>(head);
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < tokens * heads; ++item) {
            const long token = item / heads, number = item % heads, place = step->places[token];
            const float* from = mixed.get() + (token * heads + number) * 3 * head;
            const float *cosines = step->cosines + token * head, *sines = step->sines + token * head;
            const long start = (step->slots[token] * heads + number) * step->capacity * head;
            float* found = context.get() + token * own + number * head;
            auto run = [&](auto* keys, auto* values) {
                attend_at(from, cosines, sines, keys + start, values + start, place, head, scores.get(), turned.get(), found);
            };
            if (step->halves)
                run(reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values));
            else
                run(reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values));
        }
    }
    behind(layer, context.get(), tokens, residual.get(), out, threads, false);
}

// `count` layers, one after the other, the step's keys and values those of the first. hidden, out: (tokens, width), not the same.
void glm_step(const GlmLayer* layers, long count, const GlmStep* step, const float* hidden, float* out) {
    Buffer<float> between = buffer<float>(step->tokens * layers->mixed.columns);
    for (long number = 0; number < count; ++number) {
        // The last one writes to `out`.
        float* to = (count - number) % 2 ? out : between.get();
        step_layer(layers + number, step, step->keys + number * step->apart, step->values + number * step->apart, hidden, to);
        hidden = to;
    }
}
}
