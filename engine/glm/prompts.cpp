// Products of a prompt's tokens, many rows of activations, with a matrix that is read as it is stored.
//
// With AVX-512 some rows of the matrix are turned, so that a vector holds a column of 16 of them, and stay in a core's first cache while
// 12 tokens at a time are multiplied with them. What comes next of the matrix is asked for meanwhile.
//
// With the matrix unit (AMX), whole numbers. It multiplies bf16 and sums fp32. A weight that a whole number and an fp16 scale stand for is
// the sum of two bf16 numbers; of an activation two hold 16 bits. Of the four products of their parts three are summed, so a product's
// error is 2^-17 of it: a hundredth of what the rounding of the weights has done. (Plain fp32 would need six products, of three parts
// each. That was no faster than AVX-512, for the unit is slowed down when it is busy for long.)
//
// Each element is summed over the columns in one order, whatever rows are beside it; but not in that of products.cpp. What is read as
// a prompt must therefore always be read by these products, however short it is.
#include "products.cpp"

namespace {

constexpr long BLOCK = 2 * LANES;    // rows of the matrix at a time, in two vectors,
constexpr long MOST = 12;             // times tokens: 24 sums
constexpr long DEEP = 256;            // columns at a time, so that a core's first cache holds the rows
constexpr long ACTIVE = 3 << 19;      // bytes of activations at a time, so that its second one holds them; but
constexpr long FEWEST_TOKENS = 132;   // as many: rows are turned again for the next ones

// 32 numbers: the even ones, then the odd ones.
inline void by_parts(__m512& a, __m512& b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 some = _mm512_permutex2var_ps(a, even, b);
    b = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
    a = some;
}

// Columns begin .. end of a row as fp32; of two parts the even ones of 32 come first.
template <typename Matrix>
void write_row(const Matrix& matrix, long row, long begin, long end, float* out) {
    constexpr int PARTS = Matrix::PARTS;
    constexpr long STEP = LANES * PARTS;
    const long span = matrix.columns / matrix.groups;
    for (long k = begin; k < end;) {
        const long group = k / span, stop = std::min(end, (group + 1) * span);
        const auto scale = matrix.scale_of(row, group);
        for (; k < stop; k += STEP, out += STEP) {
            __m512 some[PARTS];
            k + STEP <= stop ? matrix.template load<true>(row, k, scale, some) : matrix.template load<false>(row, k, scale, some);
            UNROLL for (int part = 0; part < PARTS; ++part) _mm512_store_ps(out + part * LANES, some[part]);
        }
    }
}

// BLOCK rows turned: for every column begin .. end a number of each. Those that aren't there are zeros. beside: room for LANES rows.
template <typename Matrix>
void turn_rows(const Matrix& matrix, long row, long rows, long begin, long end, float* beside, float* out) {
    for (long half = 0; half < BLOCK; half += LANES) {
        const long here = std::min(LANES, rows - row - half);
        if constexpr (!std::is_same_v<Matrix, Fp32>)
            for (long n = 0; n < here; ++n) write_row(matrix, row + half + n, begin, end, beside + n * DEEP);
        for (long k = begin; k < begin + padded(end - begin, LANES * Matrix::PARTS); k += LANES) {
            __m512i some[LANES];
            UNROLL for (int n = 0; n < LANES; ++n) {
                some[n] = _mm512_setzero_si512();
                if (n >= here) continue;
                if constexpr (std::is_same_v<Matrix, Fp32>)
                    some[n] = _mm512_castps_si512(_mm512_maskz_loadu_ps(first(end - k), matrix.weight + (row + half + n) * matrix.columns + k));
                else
                    some[n] = _mm512_load_si512(beside + n * DEEP + k - begin);
            }
            turn(some);
            UNROLL for (int n = 0; n < LANES; ++n) _mm512_store_si512(out + (k - begin + n) * BLOCK + half, some[n]);
        }
    }
}

// What is read next, asked for while something else is computed: `bytes` for every 16 columns of each of BLOCK rows.
struct Ahead {
    const char* rows[BLOCK];
    long bytes;
};

// M tokens times BLOCK turned rows over `count` columns, a multiple of 16, added to `found` (M, BLOCK) unless it `begins`.
template <int M>
__attribute__((noinline)) void tile_rows(const float* states, long stride, const float* rows, long count, bool begins, const Ahead* ahead,
                                         float* found) {
    __m512 sums[M][2];
    UNROLL for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm512_setzero_ps();
    for (long step = 0; step < count; step += LANES) {
        if (ahead)
            for (long n = 0; n < BLOCK; ++n) _mm_prefetch(ahead->rows[n] + step / LANES * ahead->bytes, _MM_HINT_T1);
        for (long k = step; k < step + LANES; ++k) {
            const __m512 low = _mm512_load_ps(rows + k * BLOCK), high = _mm512_load_ps(rows + k * BLOCK + LANES);
            UNROLL for (int m = 0; m < M; ++m) {
                const __m512 one = _mm512_set1_ps(states[m * stride + k]);
                sums[m][0] = _mm512_fmadd_ps(one, low, sums[m][0]);
                sums[m][1] = _mm512_fmadd_ps(one, high, sums[m][1]);
            }
        }
    }
    UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int n = 0; n < 2; ++n) {
            float* to = found + m * BLOCK + n * LANES;
            _mm512_store_ps(to, begins ? sums[m][n] : _mm512_add_ps(sums[m][n], _mm512_load_ps(to)));
        }
}

template <int M = 1, typename... Arguments>
void tile_rows_of(long tokens, Arguments... arguments) {
    if (tokens == M) return tile_rows<M>(arguments...);
    if constexpr (M < MOST) tile_rows_of<M + 1>(tokens, arguments...);
}

// LANES rows of a token's results to where they go.
inline void put_rows(__m512 value, long token, long row, const Target& target) {
    const __mmask16 mask = first(target.rows - row);
    const long place = token * target.rows + row;
    if (target.bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, target.bias + row));
    if (target.residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, target.residual + place));
    _mm512_mask_storeu_ps(target.out + place, mask, value);
}

template <typename Matrix>
void multiply_many(const Matrix& matrix, const float* states, long tokens, const Target& target, int threads) {
    constexpr long STEP = LANES * Matrix::PARTS;
    const long columns = matrix.columns, width = padded(columns, STEP), rows = target.rows;
    const long stride = width + LANES;  // of a token: a power of two would let them push each other out of the first cache
    const long at_once = std::max(FEWEST_TOKENS, ACTIVE / (4 * stride) / MOST * MOST), blocks = (rows + BLOCK - 1) / BLOCK;
    Buffer<float> arranged = buffer<float>(tokens * stride);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; ++token)
            arrange(states + token * columns, columns, width, Matrix::PARTS, LANES, arranged.get() + token * stride);
        Buffer<float> beside = buffer<float>(LANES * DEEP), turned = buffer<float>(DEEP * BLOCK), found = buffer<float>(at_once * BLOCK);
        std::fill(beside.get(), beside.get() + LANES * DEEP, 0.0f);
        for (long start = 0; start < tokens; start += at_once)
#pragma omp for schedule(dynamic, 2) nowait
            for (long block = 0; block < blocks; ++block) {
                const long row = block * BLOCK, stop = std::min(tokens, start + at_once);
                for (long k = 0; k < columns; k += DEEP) {
                    const long end = std::min(columns, k + DEEP), wide = padded(end - k, STEP);
                    turn_rows(matrix, row, rows, k, end, beside.get(), turned.get());
                    Ahead ahead{{}, matrix.address(0, LANES) - matrix.address(0, 0)};
                    for (long n = 0; n < BLOCK; ++n)
                        ahead.rows[n] = end < columns ? matrix.address(row + n, end) : matrix.address(row + BLOCK + n, 0);
                    for (long token = start; token < stop; token += MOST)
                        tile_rows_of(std::min(MOST, stop - token), arranged.get() + token * stride + k, stride, turned.get(), wide, k == 0,
                                     token == start ? &ahead : nullptr, found.get() + (token - start) * BLOCK);
                }
                for (long token = start; token < stop; ++token)
                    for (long half = 0; half < BLOCK && row + half < rows; half += LANES)
                        put_rows(_mm512_load_ps(found.get() + (token - start) * BLOCK + half), token, row + half, target);
            }
    }
}

}  // namespace

#ifdef HAS_TILES
namespace {

constexpr long DEPTH = 32;             // columns of a tile of bf16
constexpr long TILE = EDGE * DEPTH;    // numbers of it
constexpr int PARTS = 2;               // bf16 numbers that a number is split into
constexpr long SPLIT_ROWS = 24 << 10;  // bytes of a block's split rows at a time, so that a core's first cache holds them
constexpr long SPLIT_STATES = 1 << 20; // bytes of split activations at a time, so that its second one holds them and a block

// To bf16, as fp32: halves away from zero. Of some nans it makes something else; the part behind shows it then.
inline __m512 short_of(__m512 some) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(some), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

// The parts of 32 numbers as bf16.
inline void split(__m512 first, __m512 second, __m512i* out) {
    UNROLL for (int part = 0; part < PARTS; ++part) {
        const __m512 a = short_of(first), b = short_of(second);
        out[part] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
        first = _mm512_sub_ps(first, a), second = _mm512_sub_ps(second, b);
    }
}

// Up to 16 tokens as the unit's second operand: for every 32 columns a tile of each part. parts: of the matrix (its even columns of 32
// come first if there are two).
void split_tokens(const float* states, long columns, long tokens, int parts, uint16_t* out) {
    for (long k = 0; k < columns; k += DEPTH, out += PARTS * TILE) {
        __m512i found[PARTS][EDGE];
        for (long token = 0; token < EDGE; ++token) {
            __m512 a = _mm512_setzero_ps(), b = a;
            if (token < tokens) {
                const float* at = states + token * columns + k;
                a = _mm512_maskz_loadu_ps(first(columns - k), at);
                if (columns - k > LANES) b = _mm512_maskz_loadu_ps(first(columns - k - LANES), at + LANES);
            }
            __m512i some[PARTS];
            if (parts == 2) by_parts(a, b);
            split(a, b, some);
            UNROLL for (int part = 0; part < PARTS; ++part) found[part][token] = some[part];
        }
        for (int part = 0; part < PARTS; ++part) {
            turn(found[part]);
            for (long line = 0; line < EDGE; ++line) _mm512_store_si512(out + part * TILE + line * DEPTH, found[part][line]);
        }
    }
}

// ROWS rows that are written out as fp32 (products.cpp), as rows of the unit's first operand; `stride` from one 32 columns to the next.
void split_rows(const float* written, long width, long stride, uint16_t* out) {
    for (long k = 0; k < width; k += DEPTH, out += stride, written += DEPTH * ROWS)
        for (long n = 0; n < ROWS; ++n) {
            __m512i some[PARTS];
            split(_mm512_load_ps(written + n * LANES), _mm512_load_ps(written + (ROWS + n) * LANES), some);
            UNROLL for (int part = 0; part < PARTS; ++part) _mm512_store_si512(out + part * TILE + n * DEPTH, some[part]);
        }
}

// Two tiles of rows times one or two of tokens over some columns, added to `found`, (2, 2) tiles of fp32, unless it `begins` there.
template <bool TWO>
__attribute__((noinline)) void tile_split(const uint16_t* rows, long apart, const uint16_t* tokens, long between, long chunks, bool begins,
                                          float* found) {
    if (begins) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, found, 64);
        _tile_loadd(1, found + 256, 64);
        if (TWO) {
            _tile_loadd(2, found + 512, 64);
            _tile_loadd(3, found + 768, 64);
        }
    }
    for (long chunk = 0; chunk < chunks; ++chunk, rows += PARTS * TILE, tokens += PARTS * TILE) {
        auto rows_part = [&](long part) {
            _tile_loadd(4, rows + part * TILE, 64);
            _tile_loadd(5, rows + apart + part * TILE, 64);
        };
        auto tokens_part = [&](long part) {
            _tile_loadd(6, tokens + part * TILE, 64);
            if (TWO) _tile_loadd(7, tokens + between + part * TILE, 64);
        };
        auto multiply = [&] {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if (TWO) {
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        };
        rows_part(0);
        tokens_part(1);
        multiply();
        tokens_part(0);
        multiply();
        rows_part(1);
        multiply();
    }
    _tile_stored(0, found, 64);
    _tile_stored(1, found + 256, 64);
    if (TWO) {
        _tile_stored(2, found + 512, 64);
        _tile_stored(3, found + 768, 64);
    }
}

// A tile of fp32 (16 rows of the matrix, 16 tokens) to where it goes.
void put_tile(const float* found, long token, long tokens, long row, const Target& target) {
    __m512i some[EDGE];
    UNROLL for (int n = 0; n < EDGE; ++n) some[n] = _mm512_load_si512(found + n * EDGE);
    turn(some);
    for (long n = 0; n < std::min(EDGE, tokens); ++n) put_rows(_mm512_castsi512_ps(some[n]), token + n, row, target);
}

template <typename Matrix>
void multiply_by_unit(const Matrix& matrix, const float* states, long tokens, const Target& target, int threads) {
    const long columns = matrix.columns, width = padded(columns, DEPTH), chunks = width / DEPTH, rows = target.rows;
    const long strip = chunks * PARTS * TILE;  // numbers of 16 tokens or 16 rows
    const long at_once = padded(std::max(FEWEST_TOKENS, SPLIT_STATES / (4 * strip) * (2 * EDGE)), 2 * EDGE);
    const long groups = (tokens + EDGE - 1) / EDGE, blocks = (rows + 2 * EDGE - 1) / (2 * EDGE);
    Buffer<uint16_t> split_states = buffer<uint16_t>(groups * strip);
#pragma omp parallel num_threads(threads)
    {
        const Tiles tiles;
        const long number = omp_get_thread_num(), count = omp_get_num_threads();
#pragma omp for schedule(static)
        for (long group = 0; group < groups; ++group)
            split_tokens(states + group * EDGE * columns, columns, std::min(EDGE, tokens - group * EDGE), Matrix::PARTS,
                         split_states.get() + group * strip);
        Buffer<float> written = buffer<float>(ROWS * width), found = buffer<float>(at_once / EDGE * 2 * EDGE * EDGE);
        Buffer<uint16_t> split_block = buffer<uint16_t>(2 * strip);
        constexpr long together = SPLIT_ROWS / (4 * TILE * PARTS);  // tiles of both strips along the columns
        for (long start = 0; start < tokens; start += at_once)
            for (long block = blocks * number / count; block < blocks * (number + 1) / count; ++block) {
                const long row = block * 2 * EDGE, stop = std::min(tokens, start + at_once);
                for (long n = 0; n < 2 * EDGE; n += ROWS) {
                    const long here = std::min(ROWS, rows - row - n);
                    if (here < ROWS || width != columns) std::fill(written.get(), written.get() + ROWS * width, 0.0f);
                    if (here > 0) write_out(matrix, row + n, here, written.get());
                    split_rows(written.get(), width, PARTS * TILE, split_block.get() + n / EDGE * strip + n % EDGE * DEPTH);
                }
                for (long chunk = 0; chunk < chunks; chunk += together)
                    for (long token = start; token < stop; token += 2 * EDGE) {
                        const uint16_t* some = split_states.get() + token / EDGE * strip + chunk * PARTS * TILE;
                        (stop - token > EDGE ? tile_split<true> : tile_split<false>)(
                            split_block.get() + chunk * PARTS * TILE, strip, some, strip, std::min(together, chunks - chunk),
                            chunk == 0, found.get() + (token - start) / EDGE * 2 * EDGE * EDGE);
                    }
                for (long token = start; token < stop; token += EDGE)
                    for (long group = 0; group < 2 && row + group * EDGE < rows; ++group)
                        put_tile(found.get() + ((token - start) / EDGE * 2 + group) * EDGE * EDGE, token, stop - token, row + group * EDGE, target);
            }
    }
}

}  // namespace
#endif

extern "C" {

// As glm_multiply, for the tokens of prompts.
void glm_multiply_prompt(int kind, const void* weight, const void* scale, long groups, long rows, long columns, const float* states,
                         long tokens, const float* bias, const float* residual, float* out, int threads) {
    const Target target{out, bias, residual, rows};
    with_matrix(kind, weight, scale, groups, columns, [&](const auto& matrix) {
#ifdef HAS_TILES
        using Matrix = std::decay_t<decltype(matrix)>;
        if constexpr (std::is_same_v<Matrix, Int8> || std::is_same_v<Matrix, Int4>)
            if (tiles_allowed) return multiply_by_unit(matrix, states, tokens, target, threads);
#endif
        multiply_many(matrix, states, tokens, target, threads);
    });
}
}
