// Products of some rows of activations with a matrix that is read once, as it is stored: fp32, fp16, bf16, whole numbers of 8
// and 4 bits with scales, and 8-bit numbers on both sides. x86 CPUs with AVX-512.
//
// What a row gets never depends on the rows beside it: each element is summed in 16 lanes over the columns in one order (ascending;
// of 4 bits the even ones of 32, then the odd ones), and the lanes are added in one order at the end, however many rows there
// are. Sums are fp32; of 8-bit numbers on both sides they are whole numbers, and exact.
//
// Four rows of the matrix are multiplied with up to six activations at a time, all in registers. For more than DIRECT activations the
// rows are written out as fp32 first, into a buffer that the caches hold. A decode step is bound by reading the matrix, a prompt by the
// multiplications.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tiles.cpp"

// Loops of a fixed length are written out: only then are the arrays that they fill kept in registers.
#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr long LANES = 16;
constexpr long ROWS = 4;               // of the matrix at a time
constexpr long TOKENS = 6;             // activations at a time: 24 sums and 5 operands are 29 of 32 registers
// Bytes of the matrix that are asked for ahead: the processor's own prefetch ends at each page, and rows are shorter. int8 of one row
// took twice as long without.
constexpr long AHEAD = 8192;
constexpr long ACTIVATIONS = 1 << 20;  // bytes of activations that stay in a core's second cache
constexpr float OUTSIDE = 8.0f;        // as in eight_bit.py
constexpr float MOST8 = 127.0f, MOST16 = 127.0f * 257.0f;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;
template <typename T>
Buffer<T> buffer(long count) {
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
}

inline long padded(long count, long step) { return (count + step - 1) / step * step; }
inline __mmask16 first(long count) { return count >= LANES ? 0xFFFF : static_cast<__mmask16>((1u << count) - 1); }
inline float half(uint16_t bits) { return _cvtsh_ss(bits); }
// To fp16 and back: what is stood for is a weight of fp16 (quantize.py).
inline __m512 rounded(__m512 some) { return _mm512_cvtph_ps(_mm512_cvtps_ph(some, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }

// 16 vectors of 16 numbers of 32 bits, turned.
inline void turn(__m512i* rows) {
    __m512i some[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        some[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        some[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(some[i], some[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(some[i], some[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(some[i + 1], some[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(some[i + 1], some[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; ++i) {
        some[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        some[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        some[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        some[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; ++i) {
        rows[i] = _mm512_shuffle_i32x4(some[i], some[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(some[i], some[i + 8], 0xdd);
        rows[i + 4] = _mm512_shuffle_i32x4(some[i + 4], some[i + 12], 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(some[i + 4], some[i + 12], 0xdd);
    }
}

// ---- Matrices. `load` gives PARTS vectors: 16 * PARTS numbers of a row from a column on, zeros behind the last one. A scale covers
// columns / groups columns, a multiple of 16 * PARTS where there are several groups. DIRECT: activations up to which the matrix itself
// is multiplied, some at a time; fp32 is there again in the first cache, what must be made of other numbers is made once.

struct Unscaled {};

struct Fp32 {
    static constexpr int PARTS = 1;
    static constexpr long DIRECT = 24;
    using Scale = Unscaled;
    const float* weight;
    long columns, groups;
    Scale scale_of(long, long) const { return {}; }
    const char* address(long row, long k) const { return reinterpret_cast<const char*>(weight + row * columns + k); }
    template <bool WHOLE>
    void load(long row, long k, Scale, __m512* out) const {
        const float* at = weight + row * columns + k;
        out[0] = WHOLE ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(first(columns - k), at);
    }
};

struct Short {
    static constexpr int PARTS = 1;
    static constexpr long DIRECT = 12;
    using Scale = Unscaled;
    const uint16_t* weight;
    long columns, groups;
    Scale scale_of(long, long) const { return {}; }
    const char* address(long row, long k) const { return reinterpret_cast<const char*>(weight + row * columns + k); }
    template <bool WHOLE>
    __m256i bits(long row, long k) const {
        const uint16_t* at = weight + row * columns + k;
        return WHOLE ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)) : _mm256_maskz_loadu_epi16(first(columns - k), at);
    }
};

struct Fp16 : Short {
    template <bool WHOLE>
    void load(long row, long k, Scale, __m512* out) const {
        out[0] = _mm512_cvtph_ps(bits<WHOLE>(row, k));
    }
};

struct Bf16 : Short {
    template <bool WHOLE>
    void load(long row, long k, Scale, __m512* out) const {
        out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits<WHOLE>(row, k)), 16));
    }
};

struct Int8 {
    static constexpr int PARTS = 1;
    static constexpr long DIRECT = 12;
#ifdef __AVX512FP16__
    using Scale = __m256h;
#else
    using Scale = __m512;
#endif
    const int8_t* weight;
    const uint16_t* scale;  // fp16 (rows, groups)
    long columns, groups;
    const char* address(long row, long k) const { return reinterpret_cast<const char*>(weight + row * columns + k); }
    Scale scale_of(long row, long group) const {
#ifdef __AVX512FP16__
        return _mm256_castsi256_ph(_mm256_set1_epi16(static_cast<short>(scale[row * groups + group])));
#else
        return _mm512_set1_ps(half(scale[row * groups + group]));
#endif
    }
    template <bool WHOLE>
    void load(long row, long k, Scale by, __m512* out) const {
        const int8_t* at = weight + row * columns + k;
        const __m128i numbers = WHOLE ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)) : _mm_maskz_loadu_epi8(first(columns - k), at);
#ifdef __AVX512FP16__
        const __m256h shorts = _mm256_cvtepi16_ph(_mm256_cvtepi8_epi16(numbers));
        out[0] = _mm512_cvtph_ps(_mm256_castph_si256(_mm256_mul_ph(shorts, by)));
#else
        out[0] = rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(numbers)), by));
#endif
    }
};

// Two numbers a byte, the first one in its upper half. The parts are the even columns of 32 and the odd ones. A scale is a table of
// what the 16 numbers stand for.
struct Int4 {
    static constexpr int PARTS = 2;
    static constexpr long DIRECT = 12;
    using Scale = __m512;
    const uint8_t* weight;
    const uint16_t* scale;  // fp16 (rows, groups)
    long columns, groups;
    const char* address(long row, long k) const { return reinterpret_cast<const char*>(weight + row * (columns >> 1) + (k >> 1)); }
    Scale scale_of(long row, long group) const {
        const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
        return rounded(_mm512_mul_ps(numbers, _mm512_set1_ps(half(scale[row * groups + group]))));
    }
    template <bool WHOLE>
    void load(long row, long k, Scale table, __m512* out) const {
        const uint8_t* at = weight + row * (columns >> 1) + (k >> 1);
        const __m128i bytes = WHOLE ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)) : _mm_maskz_loadu_epi8(first((columns - k) / 2), at);
        const __m512i both = _mm512_cvtepu8_epi32(bytes);
        out[0] = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table);
        out[1] = _mm512_permutexvar_ps(both, table);
    }
};

// The matrix of a kind that glm_multiply knows, for the function that is called.
template <typename Call>
void with_matrix(int kind, const void* weight, const void* scale, long groups, long columns, Call call) {
    const auto* halves = static_cast<const uint16_t*>(weight);
    const auto* scales = static_cast<const uint16_t*>(scale);
    switch (kind) {
        case 0: return call(Fp32{static_cast<const float*>(weight), columns, 1});
        case 1: return call(Fp16{{halves, columns, 1}});
        case 2: return call(Bf16{{halves, columns, 1}});
        case 3: return call(Int8{static_cast<const int8_t*>(weight), scales, columns, groups});
        case 4: return call(Int4{static_cast<const uint8_t*>(weight), scales, columns, groups});
    }
}

// ---- Tiles: M activations times ROWS rows of the matrix.

// The lanes of four vectors, added.
inline __m128 added(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 low = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)), high = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2));
    const __m512 all = _mm512_add_ps(low, high);
    const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

// Where results go: (tokens, rows), plus the bias and the residual, either of which may be null.
struct Target {
    float* out;
    const float *bias, *residual;
    long rows;
    void put(long token, long row, __m128 found) const {
        const __mmask8 mask = rows - row >= ROWS ? 0xF : static_cast<__mmask8>((1u << (rows - row)) - 1);
        const long place = token * rows + row;
        if (bias) found = _mm_add_ps(found, _mm_maskz_loadu_ps(mask, bias + row));
        if (residual) found = _mm_add_ps(found, _mm_maskz_loadu_ps(mask, residual + place));
        _mm_mask_storeu_ps(out + place, mask, found);
    }
};

// From the matrix itself. states: rows of `stride` numbers, the parts arranged.
template <typename Matrix, int M>
__attribute__((noinline)) void tile(const Matrix& matrix, long row, const float* states, long stride, long token, const Target& target) {
    constexpr int PARTS = Matrix::PARTS;
    constexpr long STEP = LANES * PARTS;
    __m512 sums[M][ROWS];
    UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int n = 0; n < ROWS; ++n) sums[m][n] = _mm512_setzero_ps();
    auto add = [&](auto whole, long k, const typename Matrix::Scale* scales) {
        __m512 other[ROWS][PARTS];
        UNROLL for (int n = 0; n < ROWS; ++n) {
            _mm_prefetch(matrix.address(row + n, k) + AHEAD, _MM_HINT_T0);
            matrix.template load<decltype(whole)::value>(row + n, k, scales[n], other[n]);
        }
        UNROLL for (int part = 0; part < PARTS; ++part)
            UNROLL for (int m = 0; m < M; ++m) {
                const __m512 one = _mm512_loadu_ps(states + m * stride + k + part * LANES);
                UNROLL for (int n = 0; n < ROWS; ++n) sums[m][n] = _mm512_fmadd_ps(one, other[n][part], sums[m][n]);
            }
    };
    const long span = matrix.columns / matrix.groups;
    for (long group = 0; group < matrix.groups; ++group) {
        typename Matrix::Scale scales[ROWS];
        UNROLL for (int n = 0; n < ROWS; ++n) scales[n] = matrix.scale_of(row + n, group);
        const long end = (group + 1) * span;
        long k = group * span;
        for (; k + STEP <= end; k += STEP) add(std::true_type{}, k, scales);
        if (k < end) add(std::false_type{}, k, scales);
    }
    UNROLL for (int m = 0; m < M; ++m) target.put(token + m, row, added(sums[m][0], sums[m][1], sums[m][2], sums[m][3]));
}

// Up to ROWS rows as fp32: for every 16 columns a vector of each row.
template <typename Matrix>
__attribute__((noinline)) void write_out(const Matrix& matrix, long row, long here, float* out) {
    constexpr int PARTS = Matrix::PARTS;
    constexpr long STEP = LANES * PARTS;
    const long span = matrix.columns / matrix.groups;
    for (long n = 0; n < here; ++n) {
        auto store = [&](long k, const __m512* some) {
            UNROLL for (int part = 0; part < PARTS; ++part) _mm512_store_ps(out + (k + part * LANES) * ROWS + n * LANES, some[part]);
        };
        for (long group = 0; group < matrix.groups; ++group) {
            const auto scale = matrix.scale_of(row + n, group);
            const long end = (group + 1) * span;
            long k = group * span;
            __m512 some[PARTS];
            for (; k + STEP <= end; k += STEP) {
                _mm_prefetch(matrix.address(row + n, k) + AHEAD, _MM_HINT_T0);
                matrix.template load<true>(row + n, k, scale, some);
                store(k, some);
            }
            if (k < end) {
                matrix.template load<false>(row + n, k, scale, some);
                store(k, some);
            }
        }
    }
}

// From rows that are written out. states: for every 16 columns a vector of each token.
template <int M>
__attribute__((noinline)) void tile_written(const float* weight, const float* states, long width, long token, long row, const Target& target) {
    __m512 sums[M][ROWS];
    UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int n = 0; n < ROWS; ++n) sums[m][n] = _mm512_setzero_ps();
    for (long k = 0; k < width; k += LANES) {
        __m512 other[ROWS];
        UNROLL for (int n = 0; n < ROWS; ++n) other[n] = _mm512_load_ps(weight + k * ROWS + n * LANES);
        UNROLL for (int m = 0; m < M; ++m) {
            const __m512 one = _mm512_load_ps(states + k * M + m * LANES);
            UNROLL for (int n = 0; n < ROWS; ++n) sums[m][n] = _mm512_fmadd_ps(one, other[n], sums[m][n]);
        }
    }
    UNROLL for (int m = 0; m < M; ++m) target.put(token + m, row, added(sums[m][0], sums[m][1], sums[m][2], sums[m][3]));
}

// A number 1 .. TOKENS as a constant of the function that is called.
template <typename Call>
void with_count(long count, Call call) {
    switch (count) {
        case 1: return call(std::integral_constant<int, 1>{});
        case 2: return call(std::integral_constant<int, 2>{});
        case 3: return call(std::integral_constant<int, 3>{});
        case 4: return call(std::integral_constant<int, 4>{});
        case 5: return call(std::integral_constant<int, 5>{});
        case 6: return call(std::integral_constant<int, 6>{});
    }
}

// A token's numbers as the tiles read them: `step` apart for every 16, the parts arranged, zeros behind the columns.
void arrange(const float* states, long columns, long width, int parts, long step, float* out) {
    for (long k = 0; k < width; k += LANES * parts) {
        for (int part = 0; part < parts; ++part) {
            float* to = out + (k / LANES + part) * step;
            if (parts == 1 && k + LANES <= columns) {
                std::memcpy(to, states + k, LANES * sizeof(float));
                continue;
            }
            for (long lane = 0; lane < LANES; ++lane) {
                const long column = k + lane * parts + part;
                to[lane] = column < columns ? states[column] : 0.0f;
            }
        }
    }
}

template <typename Matrix>
void multiply(const Matrix& matrix, const float* states, long tokens, const Target& target, int threads) {
    constexpr int PARTS = Matrix::PARTS;
    const long columns = matrix.columns, width = padded(columns, LANES * PARTS);
    const bool few = tokens <= Matrix::DIRECT;
    const bool as_it_is = few && PARTS == 1 && width == columns;
    Buffer<float> arranged;
    if (!as_it_is) arranged = buffer<float>(tokens * width);
    const float* from = as_it_is ? states : arranged.get();
    const long chunk = std::max(TOKENS, ACTIVATIONS / (4 * width) / TOKENS * TOKENS);
    const long blocks = (target.rows + ROWS - 1) / ROWS;
#pragma omp parallel num_threads(threads)
    {
        const long number = omp_get_thread_num(), count = omp_get_num_threads();
        if (!as_it_is) {
            for (long token = tokens * number / count; token < tokens * (number + 1) / count; ++token) {
                const long start = token / TOKENS * TOKENS, together = std::min(TOKENS, tokens - start);
                float* out = few ? arranged.get() + token * width : arranged.get() + start * width + (token - start) * LANES;
                arrange(states + token * columns, columns, width, PARTS, few ? LANES : together * LANES, out);
            }
#pragma omp barrier
        }
        const long begin = blocks * number / count, end = blocks * (number + 1) / count;
        const long whole = target.rows / ROWS;  // blocks with all of their rows
        for (long block = begin; few && block < std::min(end, whole); ++block)
            for (long token = 0; token < tokens; token += TOKENS)
                with_count(std::min(TOKENS, tokens - token), [&](auto count) {
                    tile<Matrix, decltype(count)::value>(matrix, block * ROWS, from + token * width, width, token, target);
                });
        Buffer<float> written = buffer<float>(ROWS * width);
        for (long start = 0; start < tokens; start += chunk) {
            const long stop = std::min(tokens, start + chunk);
            for (long block = few ? std::max(begin, whole) : begin; block < end; ++block) {
                const long row = block * ROWS, here = std::min(ROWS, target.rows - row);
                if (here < ROWS) std::fill(written.get(), written.get() + ROWS * width, 0.0f);
                write_out(matrix, row, here, written.get());
                const long together = few ? 1 : TOKENS;  // as they are arranged
                for (long token = start; token < stop; token += together)
                    with_count(std::min(together, stop - token), [&](auto count) {
                        tile_written<decltype(count)::value>(written.get(), from + token * width, width, token, row, target);
                    });
            }
        }
    }
}

#ifdef __AVX512VNNI__
// ---- 8-bit numbers on both sides. Sums are exact in any order, so the matrix lies as the multiplications want it: (rows / 16,
// columns / 4, 16, 4), padded with zeros. A vector of it is four columns of 16 rows; no lanes are added at the end.

struct Sums {
    __m512i rows;
};

constexpr long GROUP = 16, GROUPS = 2, LINES = 12;  // rows of a vector, vectors and activations at a time: 24 sums
constexpr long EVERY = 16;  // lines are padded to as many

template <int M, int G>
__attribute__((noinline)) void tile8(const uint8_t* states, const int8_t* weight, long width, __m512i* found) {
    __m512i sums[M][G];
    UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int g = 0; g < G; ++g) sums[m][g] = _mm512_setzero_si512();
    for (long k = 0; k < width; k += 4) {
        __m512i other[G];
        UNROLL for (int g = 0; g < G; ++g) {
            const int8_t* at = weight + (g * width + k) * GROUP;
            _mm_prefetch(reinterpret_cast<const char*>(at) + AHEAD, _MM_HINT_T0);
            other[g] = _mm512_loadu_si512(at);
        }
        UNROLL for (int m = 0; m < M; ++m) {
            int32_t four;
            std::memcpy(&four, states + m * width + k, sizeof four);
            const __m512i one = _mm512_set1_epi32(four);
            UNROLL for (int g = 0; g < G; ++g) sums[m][g] = _mm512_dpbusd_epi32(sums[m][g], one, other[g]);
        }
    }
    UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int g = 0; g < G; ++g) _mm512_store_si512(found + m * GROUPS + g, sums[m][g]);
}

template <int M = 1>
void tile8_of(long lines, long groups, const uint8_t* states, const int8_t* weight, long width, __m512i* found) {
    if (lines == M) return groups == 1 ? tile8<M, 1>(states, weight, width, found) : tile8<M, 2>(states, weight, width, found);
    if constexpr (M < LINES) tile8_of<M + 1>(lines, groups, states, weight, width, found);
}

#ifdef HAS_TILES
constexpr long DEPTH8 = 64;    // columns of a tile of 8-bit numbers
constexpr long FEWEST = 8;     // lines that are worth a tile

// One or two tiles of lines times one or two vectors of the matrix. width: a multiple of DEPTH8.
template <bool LINES, bool ROWS_TOO>
__attribute__((noinline)) void unit8(const uint8_t* states, const int8_t* weight, long width, __m512i* found) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long k = 0; k < width; k += DEPTH8) {
        const int8_t* at = weight + k * GROUP;
        for (long line = 0; line < EDGE; ++line) _mm_prefetch(reinterpret_cast<const char*>(at) + AHEAD + line * 64, _MM_HINT_T0);
        _tile_loadd(6, at, 64);
        _tile_loadd(4, states + k, width);
        _tile_dpbusd(0, 4, 6);
        if (ROWS_TOO) {
            _tile_loadd(7, at + width * GROUP, 64);
            _tile_dpbusd(1, 4, 7);
        }
        if (LINES) {
            _tile_loadd(5, states + EDGE * width + k, width);
            _tile_dpbusd(2, 5, 6);
            if (ROWS_TOO) _tile_dpbusd(3, 5, 7);
        }
    }
    constexpr long STRIDE = GROUPS * sizeof(__m512i);
    _tile_stored(0, found, STRIDE);
    if (ROWS_TOO) _tile_stored(1, found + 1, STRIDE);
    if (LINES) {
        _tile_stored(2, found + EDGE * GROUPS, STRIDE);
        if (ROWS_TOO) _tile_stored(3, found + EDGE * GROUPS + 1, STRIDE);
    }
}

void unit8_of(long lines, long groups, const uint8_t* states, const int8_t* weight, long width, __m512i* found) {
    for (long line = 0; line < lines; line += 2 * EDGE) {
        const bool two = lines - line > EDGE;
        (groups == 1 ? two ? unit8<true, false> : unit8<false, false> : two ? unit8<true, true> : unit8<false, true>)(
            states + line * width, weight, width, found + line * GROUPS);
    }
}
#endif

// A token's bulk and what lies outside of it. inner, outer: what a whole number of each stands for; line: of its outsiders' upper
// halves among the rows of whole numbers, the lower ones behind it; 0 without any.
struct Spread {
    float bound, inner, outer;
    long line;
};

inline __m512 some_of(const float* states, long columns, long k) { return _mm512_maskz_loadu_ps(first(columns - k), states + k); }

Spread spread_of(const float* states, long columns) {
    __m512 total = _mm512_setzero_ps();
    for (long k = 0; k < columns; k += LANES) total = _mm512_add_ps(total, _mm512_abs_ps(some_of(states, columns, k)));
    const float bound = OUTSIDE * (_mm512_reduce_add_ps(total) / static_cast<float>(columns));
    if (!(bound < INFINITY)) return {bound, NAN, 0.0f, 0};  // maxima and whole numbers would hide inf and nan
    const __m512 limit = _mm512_set1_ps(bound);
    __m512 inner = _mm512_setzero_ps(), outer = inner;
    for (long k = 0; k < columns; k += LANES) {
        const __m512 some = _mm512_abs_ps(some_of(states, columns, k));
        const __mmask16 beyond = _mm512_cmp_ps_mask(some, limit, _CMP_GT_OQ);
        inner = _mm512_mask_max_ps(inner, static_cast<__mmask16>(~beyond), inner, some);
        outer = _mm512_mask_max_ps(outer, beyond, outer, some);
    }
    return {bound, _mm512_reduce_max_ps(inner) / MOST8, _mm512_reduce_max_ps(outer) / MOST16, 0};
}

inline void put(uint8_t* out, long k, __m512i numbers) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k), _mm512_cvtepi32_epi8(_mm512_add_epi32(numbers, _mm512_set1_epi32(128))));
}

// Whole numbers -128 .. 127 with 128 added. high and low are null for a token without outsiders.
void round_token(const float* states, long columns, const Spread& spread, uint8_t* inner, uint8_t* high, uint8_t* low) {
    const __m512 limit = _mm512_set1_ps(spread.bound);
    const __m512 step = _mm512_set1_ps(spread.inner > 0 ? spread.inner : 1.0f);
    const __m512 coarse = _mm512_set1_ps(spread.outer > 0 ? spread.outer : 1.0f);
    for (long k = 0; k < columns; k += LANES) {
        const __m512 some = some_of(states, columns, k);
        const __mmask16 beyond = _mm512_cmp_ps_mask(_mm512_abs_ps(some), limit, _CMP_GT_OQ);
        put(inner, k, _mm512_cvtps_epi32(_mm512_div_ps(_mm512_maskz_mov_ps(static_cast<__mmask16>(~beyond), some), step)));
        if (!high) continue;
        const __m512i outer = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_maskz_mov_ps(beyond, some), coarse));
        const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(outer, _mm512_set1_epi32(128)), 8);
        put(high, k, upper);
        put(low, k, _mm512_sub_epi32(outer, _mm512_slli_epi32(upper, 8)));
    }
}

// scale: fp32, one a row; row_sums: of the rows' whole numbers.
void multiply8(const int8_t* weight, const float* scale, const int32_t* row_sums, long columns, const float* states, long tokens,
               const Target& target, int threads) {
    const long width = padded(columns, 4), step = padded(columns, LANES), rows = target.rows;
    Buffer<Spread> spreads = buffer<Spread>(tokens);
    Buffer<uint8_t> numbers;
    long lines = tokens;
    const long blocks = (rows + GROUPS * GROUP - 1) / (GROUPS * GROUP), groups = (rows + GROUP - 1) / GROUP;
#pragma omp parallel num_threads(threads)
    {
        const long number = omp_get_thread_num(), count = omp_get_num_threads();
        const long from = tokens * number / count, to = tokens * (number + 1) / count;
        for (long token = from; token < to; ++token) spreads[token] = spread_of(states + token * columns, columns);
#pragma omp barrier
#pragma omp single
        {
            for (long token = 0; token < tokens; ++token)
                if (spreads[token].outer > 0) {
                    spreads[token].line = lines;
                    lines += 2;
                }
            numbers = buffer<uint8_t>(padded(lines, EVERY) * width + step);
        }
        auto line = [&](long which) { return numbers.get() + which * width; };
        Buffer<uint8_t> whole = buffer<uint8_t>(3 * step);  // rounding writes whole vectors
        for (long token = from; token < to; ++token) {
            const long own = spreads[token].line;
            uint8_t* parts[3] = {whole.get(), own ? whole.get() + step : nullptr, own ? whole.get() + 2 * step : nullptr};
            round_token(states + token * columns, columns, spreads[token], parts[0], parts[1], parts[2]);
            std::memcpy(line(token), parts[0], width);
            for (long half = 1; own && half < 3; ++half) std::memcpy(line(own + half - 1), parts[half], width);
        }
#pragma omp barrier
        Buffer<Sums> found = buffer<Sums>(padded(lines, EVERY) * GROUPS);
#ifdef HAS_TILES
        const bool by_unit = tiles_allowed && lines >= FEWEST && width % DEPTH8 == 0;
        std::unique_ptr<Tiles> tiles(by_unit ? new Tiles : nullptr);
#else
        constexpr bool by_unit = false;
#endif
        const long together = (lines + (lines + LINES - 1) / LINES - 1) / ((lines + LINES - 1) / LINES);  // tiles of like size
        const long begin = blocks * number / count, end = blocks * (number + 1) / count;
        for (long block = begin; block < end; ++block) {
            const long here = std::min(GROUPS, groups - block * GROUPS);
            const int8_t* some = weight + block * GROUPS * GROUP * width;
#ifdef HAS_TILES
            if (by_unit) unit8_of(lines, here, numbers.get(), some, width, &found[0].rows);
#endif
            for (long which = 0; which < lines && !by_unit; which += together)
                tile8_of(std::min(together, lines - which), here, line(which), some, width, &found[which * GROUPS].rows);
            for (long group = 0; group < here; ++group) {
                const long row = (block * GROUPS + group) * GROUP;
                const __mmask16 mask = first(rows - row);
                const __m512i raised = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(mask, row_sums + row), 7);  // times the 128 added
                const __m512 scales = _mm512_maskz_loadu_ps(mask, scale + row);
                const __m512 bias = target.bias ? _mm512_maskz_loadu_ps(mask, target.bias + row) : _mm512_setzero_ps();
                auto product = [&](long which) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(found[which * GROUPS + group].rows, raised)); };
                for (long token = 0; token < tokens; ++token) {
                    const Spread& spread = spreads[token];
                    __m512 value = _mm512_mul_ps(product(token), _mm512_set1_ps(spread.inner));
                    if (spread.line) {
                        const __m512 outer = _mm512_fmadd_ps(product(spread.line), _mm512_set1_ps(256.0f), product(spread.line + 1));
                        value = _mm512_fmadd_ps(outer, _mm512_set1_ps(spread.outer), value);
                    }
                    value = _mm512_fmadd_ps(value, scales, bias);
                    const long place = token * rows + row;
                    if (target.residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, target.residual + place));
                    _mm512_mask_storeu_ps(target.out + place, mask, value);
                }
            }
        }
    }
}
#endif

}  // namespace

extern "C" {

// What this library was built for: 1 for whole numbers of 8 bits on both sides, too.
int glm_products() {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

// kind: 0 fp32, 1 fp16, 2 bf16, 3 int8, 4 int4. out (tokens, rows) = states (tokens, columns) times the transposed weight, plus bias
// (rows) and residual (tokens, rows). scale, bias and residual may be null.
void glm_multiply(int kind, const void* weight, const void* scale, long groups, long rows, long columns, const float* states,
                  long tokens, const float* bias, const float* residual, float* out, int threads) {
    const Target target{out, bias, residual, rows};
    with_matrix(kind, weight, scale, groups, columns, [&](const auto& matrix) { multiply(matrix, states, tokens, target, threads); });
}

#ifdef __AVX512VNNI__
// weight: as multiply8 wants it.
void glm_multiply8(const void* weight, const float* scale, const int32_t* row_sums, long rows, long columns, const float* states,
                   long tokens, const float* bias, const float* residual, float* out, int threads) {
    if (tokens == 0) return;
    const Target target{out, bias, residual, rows};
    multiply8(static_cast<const int8_t*>(weight), scale, row_sums, columns, states, tokens, target, threads);
}
#endif
}
