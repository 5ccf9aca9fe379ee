// Products of a prompt's tokens with a matrix of whole numbers by the processor's matrix unit (AMX), where it has one.
//
// The unit multiplies bf16 and sums fp32. A weight that whole numbers and an fp16 scale stand for is the sum of two bf16 numbers; of an
// activation two hold 16 bits. Of the four products of their parts three are summed, so a product's error is 2^-17 of it: a hundredth of what
// the rounding of the weights has done. It takes three times the unit's work, which is quicker than AVX-512's fp32 yet. (Plain fp32
// would need six, of three parts each. That was no faster, for the unit is slowed down when it is busy for long.) Numbers are split on
// the way: the matrix is there once, as it is stored.
//
// Each element is summed over the columns in one order, whatever rows are beside it; but not in that of products.cpp. What is read as
// a prompt must therefore always be read by these products, however short it is.
#include "products.cpp"

namespace {

constexpr long LINES_OF = 12;          // rows of the matrix at a time,
constexpr long TOGETHER = 2;           // times vectors of tokens: 24 sums
constexpr long SIDE = TOGETHER * LANES;
constexpr long DEEP = 512;             // columns at a time, so that a core's first cache holds the rows
constexpr long APART = DEEP + LANES;   // of the rows there: a power of two would let them push each other out
constexpr long PANEL = 3 << 19;        // bytes of turned activations at a time, so that its second one holds them

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

// Tokens turned: for every column a number of each of SIDE tokens; zeros for those that aren't there.
void turn_tokens(const float* states, long columns, long width, long tokens, int parts, float* out) {
    for (long k = 0; k < width; k += LANES * parts)
        for (long side = 0; side < SIDE; side += LANES) {
            __m512i some[2][LANES];
            for (long n = 0; n < LANES; ++n) {
                __m512 a = _mm512_setzero_ps(), b = a;
                if (side + n < tokens) {
                    const float* at = states + (side + n) * columns + k;
                    a = _mm512_maskz_loadu_ps(first(columns - k), at);
                    if (parts == 2 && columns - k > LANES) b = _mm512_maskz_loadu_ps(first(columns - k - LANES), at + LANES);
                }
                if (parts == 2) by_parts(a, b);
                some[0][n] = _mm512_castps_si512(a), some[1][n] = _mm512_castps_si512(b);
            }
            for (int part = 0; part < parts; ++part) {
                turn(some[part]);
                for (long n = 0; n < LANES; ++n) _mm512_store_si512(out + (k + part * LANES + n) * SIDE + side, some[part][n]);
            }
        }
}

// LINES_OF rows times SIDE tokens over `count` columns, a multiple of 16, added to `found` (LINES_OF, SIDE) unless it `begins`. ahead:
// called for every 16 columns.
template <typename Ahead>
__attribute__((noinline)) void tile_turned(const float* rows, const float* panel, long count, bool begins, float* found, Ahead ahead) {
    __m512 sums[LINES_OF][TOGETHER];
    UNROLL for (int r = 0; r < LINES_OF; ++r)
        UNROLL for (int n = 0; n < TOGETHER; ++n) sums[r][n] = _mm512_setzero_ps();
    for (long step = 0; step < count; step += LANES) {
        ahead(step);
        for (long k = step; k < step + LANES; ++k) {
            __m512 some[TOGETHER];
            UNROLL for (int n = 0; n < TOGETHER; ++n) some[n] = _mm512_load_ps(panel + k * SIDE + n * LANES);
            UNROLL for (int r = 0; r < LINES_OF; ++r) {
                const __m512 one = _mm512_set1_ps(rows[r * APART + k]);
                UNROLL for (int n = 0; n < TOGETHER; ++n) sums[r][n] = _mm512_fmadd_ps(one, some[n], sums[r][n]);
            }
        }
    }
    UNROLL for (int r = 0; r < LINES_OF; ++r)
        UNROLL for (int n = 0; n < TOGETHER; ++n) {
            float* to = found + r * SIDE + n * LANES;
            _mm512_store_ps(to, begins ? sums[r][n] : _mm512_add_ps(sums[r][n], _mm512_load_ps(to)));
        }
}

// Up to `lines` rows of 16 tokens, `apart` from row to row, to where they go.
void put_turned(const float* found, long apart, long lines, long token, long tokens, long row, const Target& target) {
    const __mmask16 mask = first(std::min(lines, target.rows - row));
    __m512i some[LANES];
    UNROLL for (int n = 0; n < LANES; ++n) some[n] = n < lines ? _mm512_load_si512(found + n * apart) : _mm512_setzero_si512();
    turn(some);
    const __m512 bias = target.bias ? _mm512_maskz_loadu_ps(mask, target.bias + row) : _mm512_setzero_ps();
    UNROLL for (int n = 0; n < LANES; ++n) {
        if (n >= tokens) break;
        const long place = (token + n) * target.rows + row;
        __m512 value = _mm512_add_ps(_mm512_castsi512_ps(some[n]), bias);
        if (target.residual) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, target.residual + place));
        _mm512_mask_storeu_ps(target.out + place, mask, value);
    }
}

template <typename Matrix>
void multiply_turned(const Matrix& matrix, const float* states, long tokens, const Target& target, int threads) {
    const long columns = matrix.columns, width = padded(columns, LANES * Matrix::PARTS), rows = target.rows;
    const long at_once = std::max(SIDE, PANEL / (4 * width) / SIDE * SIDE);
    const long groups = (tokens + SIDE - 1) / SIDE, blocks = (rows + LINES_OF - 1) / LINES_OF;
    Buffer<float> panels = buffer<float>(groups * width * SIDE);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long group = 0; group < groups; ++group)
            turn_tokens(states + group * SIDE * columns, columns, width, tokens - group * SIDE, Matrix::PARTS, panels.get() + group * width * SIDE);
        Buffer<float> written = buffer<float>(LINES_OF * APART), found = buffer<float>(at_once * LINES_OF);
        std::fill(written.get(), written.get() + LINES_OF * APART, 0.0f);
        for (long start = 0; start < tokens; start += at_once)
#pragma omp for schedule(dynamic, 4) nowait
            for (long block = 0; block < blocks; ++block) {
                const long row = block * LINES_OF, here = std::min(LINES_OF, rows - row), stop = std::min(tokens, start + at_once);
                for (long k = 0; k < columns; k += DEEP) {
                    const long end = std::min(columns, k + DEEP), wide = padded(end - k, LANES * Matrix::PARTS);
                    for (long n = 0; n < here; ++n) write_row(matrix, row + n, k, end, written.get() + n * APART);
                    // What is read next: these rows' next columns, or the first ones of the next rows.
                    const char* next[LINES_OF];
                    for (long n = 0; n < LINES_OF; ++n) next[n] = end < columns ? matrix.address(row + n, end) : matrix.address(row + LINES_OF + n, 0);
                    const long bytes = matrix.address(0, LANES) - matrix.address(0, 0);
                    for (long token = start; token < stop; token += SIDE) {
                        const float* panel = panels.get() + token / SIDE * width * SIDE + k * SIDE;
                        float* to = found.get() + (token - start) / SIDE * LINES_OF * SIDE;
                        if (token == start)
                            tile_turned(written.get(), panel, wide, k == 0, to, [&](long step) {
                                UNROLL for (int n = 0; n < LINES_OF; ++n) _mm_prefetch(next[n] + step / LANES * bytes, _MM_HINT_T1);
                            });
                        else
                            tile_turned(written.get(), panel, wide, k == 0, to, [](long) {});
                    }
                }
                for (long token = start; token < stop; token += LANES)
                    put_turned(found.get() + (token - start) / SIDE * LINES_OF * SIDE + (token - start) % SIDE, SIDE, LINES_OF, token, stop - token, row, target);
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
__attribute__((noinline)) void tile_split(const uint16_t* rows, long apart, const uint16_t* tokens, long between, long chunks, bool begins, float* found) {
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

template <typename Matrix>
void multiply_split(const Matrix& matrix, const float* states, long tokens, const Target& target, int threads) {
    const long columns = matrix.columns, width = padded(columns, DEPTH), chunks = width / DEPTH, rows = target.rows;
    const long strip = chunks * PARTS * TILE;  // numbers of 16 tokens or 16 rows
    const long at_once = std::max(2 * EDGE, SPLIT_STATES / (4 * strip) * (2 * EDGE));
    const long groups = (tokens + EDGE - 1) / EDGE, blocks = (rows + 2 * EDGE - 1) / (2 * EDGE);
    Buffer<uint16_t> split_states = buffer<uint16_t>(groups * strip);
#pragma omp parallel num_threads(threads)
    {
        const Tiles tiles;
        const long number = omp_get_thread_num(), count = omp_get_num_threads();
#pragma omp for schedule(static)
        for (long group = 0; group < groups; ++group)
            split_tokens(states + group * EDGE * columns, columns, std::min(EDGE, tokens - group * EDGE), Matrix::PARTS, split_states.get() + group * strip);
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
                        put_turned(found.get() + ((token - start) / EDGE * 2 + group) * EDGE * EDGE, EDGE, EDGE, token, stop - token, row + group * EDGE, target);
            }
    }
}

}  // namespace
#endif

extern "C" {

// As glm_multiply, for the tokens of prompts.
void glm_multiply_prompt(int kind, const void* weight, const void* scale, long groups, long rows, long columns, const float* states,
                         long tokens, const float* bias, const float* residual, float* out, int threads) {
    const auto* halves = static_cast<const uint16_t*>(weight);
    const auto* scales = static_cast<const uint16_t*>(scale);
    const Target target{out, bias, residual, rows};
    const Int8 int8{static_cast<const int8_t*>(weight), scales, columns, groups};
    const Int4 int4{static_cast<const uint8_t*>(weight), scales, columns, groups};
#ifdef HAS_TILES
    if (tiles_allowed && kind == 3) return multiply_split(int8, states, tokens, target, threads);
    if (tiles_allowed && kind == 4) return multiply_split(int4, states, tokens, target, threads);
#endif
    switch (kind) {
        case 0: return multiply_turned(Fp32{static_cast<const float*>(weight), columns, 1}, states, tokens, target, threads);
        case 1: return multiply_turned(Fp16{{halves, columns, 1}}, states, tokens, target, threads);
        case 2: return multiply_turned(Bf16{{halves, columns, 1}}, states, tokens, target, threads);
        case 3: return multiply_turned(int8, states, tokens, target, threads);
        case 4: return multiply_turned(int4, states, tokens, target, threads);
    }
}
}
