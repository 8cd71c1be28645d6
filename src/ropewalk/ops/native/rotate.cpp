// The rotation on CPUs, as specified by `RotationTask` in backends/base.py: q and k in one call, each read and written
// once.
//
// Plain C++ with a C interface. It includes no torch headers, so one build works with every version of torch. The loops
// are written for the compiler's vectorizer; hatch_build.py compiles this file for several instruction sets.
//
// A table here holds cos and sin of a block of tokens in the order in which the channels lie in memory: one value per
// pair for the half layout, two per pair for the interleaved layout.
//
// Shapes: B batch rows, H heads, T tokens, D channels of a head, P pairs.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

enum DType : int64_t { FLOAT64 = 0, FLOAT32 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

struct Strides3 { int64_t b, h, t; };   // in elements
struct Strides2 { int64_t b, t, p; };

struct HeadLayout {  // of q or k, and of its output
    int64_t heads;
    Strides3 x_strides, out_strides;
};

// What the calls of one signature share: 31 int64 fields, packed in this order by backends/cpu.py.
struct Plan {
    int64_t dtype, tensors, batch, tokens, channels, start, pairs, interleaved, inverse, fixed_point;
    Strides2 first_strides, second_strides;  // of cos and sin, or of positions and frequencies
    int64_t factors_b;                       // stride
    HeadLayout layouts[2];
};

// Where the tensors of one call are: 7 addresses, packed in this order by backends/cpu.py.
struct Addresses {
    struct { const char* x; char* out; } heads[2];
    const void *first, *second;  // cos and sin, or positions and frequencies (rotations per token, in units of 2^-64)
    const double* factors;       // attention factors; not read with tables
};

struct Task : Plan, Addresses {
    int threads;

    int64_t table_width() const { return interleaved ? 2 * pairs : pairs; }  // values per token
};

// --- vectors ---------------------------------------------------------------------------------------------------------

// As many floats as a register holds: compilers split longer vectors into poor code.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using Doubles = double __attribute__((vector_size(LANES * 8)));
using Floats = float __attribute__((vector_size(LANES * 4)));
using Words = uint32_t __attribute__((vector_size(LANES * 4)));
using Shorts = uint16_t __attribute__((vector_size(LANES * 2)));

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

template <class To> inline To from_memory(const void* at) {
    To to;
    std::memcpy(&to, at, sizeof to);
    return to;
}
template <class From> inline void to_memory(void* at, From from) { std::memcpy(at, &from, sizeof from); }

inline Doubles load(const double* at) { return from_memory<Doubles>(at); }
inline Floats load(const float* at) { return from_memory<Floats>(at); }
inline Floats load(const BFloat16* at) {
    return Floats(__builtin_convertvector(from_memory<Shorts>(at), Words) << 16);
}
inline Floats load(const Float16* at) {
#if defined(__AVX512F__)
    return Floats(_mm512_cvtph_ps(from_memory<__m256i>(at)));
#elif defined(__F16C__)
    return Floats(_mm256_cvtph_ps(from_memory<__m128i>(at)));
#else
    const Words bits = __builtin_convertvector(from_memory<Shorts>(at), Words);
    const Words absolute = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
    // Rebias the exponent by a multiplication, which is exact for subnormal numbers too. It does not cover infinities
    // and NaN.
    const Words value = Words(Floats(absolute) * 0x1p112f);
    return Floats((absolute >= 0x0f800000 ? absolute | 0x7f800000 : value) | sign);
#endif
}

// Round to nearest, ties to even.
inline void store(double* at, Doubles x) { to_memory(at, x); }
inline void store(float* at, Floats x) { to_memory(at, x); }
inline void store(BFloat16* at, Floats x) {
#if defined(__AVX512BF16__)  // this instruction flushes subnormal numbers to 0
    to_memory(at, _mm512_cvtneps_pbh(__m512(x)));
#else
    const Words bits = Words(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to_memory(at, __builtin_convertvector(x == x ? rounded : bits >> 16 | 0x40, Shorts));
#endif
}
inline void store(Float16* at, Floats x) {
#if defined(__AVX512F__)
    to_memory(at, _mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
    to_memory(at, _mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT));
#else
    const Words bits = Words(x), absolute = bits & 0x7fffffff;
    const Words normal = (absolute - (112u << 23) + 0xfff + (absolute >> 13 & 1)) >> 13;
    // Adding 0.5 aligns and rounds a number that is subnormal in half precision; its bits then start at the lowest one.
    const Words subnormal = Words(Floats(absolute) + 0.5f) - 0x3f000000;
    Words half = absolute < 0x38800000 ? subnormal : normal;
    // 65,536 and above is infinity; smaller numbers that round up to it carry into the exponent by themselves.
    half = absolute >= 0x47800000 ? Words{} + 0x7c00 : half;
    half = absolute > 0x7f800000 ? Words{} + 0x7e00 : half;
    to_memory(at, __builtin_convertvector(half | (bits >> 16 & 0x8000), Shorts));
#endif
}

// --- angles ----------------------------------------------------------------------------------------------------------

// cos and sin of an angle in units of 2^-64 of a full rotation. Integer arithmetic subtracts the nearest quarter of a
// rotation exactly. The remainder is within +-pi/4, where the polynomials are correct to 3e-8 (least squares at
// Chebyshev nodes, in the square of the angle).
inline void cos_sin(int64_t fixed_point_angle, float factor, float& cos, float& sin) {
    const uint64_t quarter = (uint64_t(fixed_point_angle) + (1ull << 61)) >> 62;
    const int32_t remainder = int32_t(int64_t(uint64_t(fixed_point_angle) - (quarter << 62)) >> 31);
    const float angle = float(remainder) * 7.31459163e-10f;  // 2 pi / 2^33
    const float square = angle * angle;
    const float even =
        1 + square * (-0.5f + square * (0.0416666227f + square * (-0.0013886748f + square * 2.43892034e-05f)));
    const float odd = angle + angle * square * (-0.166666502f + square * (0.00833195798f + square * -0.000194934967f));
    const bool is_odd_quarter = quarter & 1;
    const float c = is_odd_quarter ? odd : even, s = is_odd_quarter ? even : odd;
    cos = ((quarter + 1) & 2 ? -c : c) * factor;
    sin = (quarter & 2 ? -s : s) * factor;
}

// Fill the table for `tokens` tokens from `first` on, of row b of the batch.
template <class Real>
void fill_table(const Task& task, int64_t b, int64_t first, int64_t tokens, Real* cos, Real* sin) {
    const int64_t pairs = task.pairs;
    const Real sign = task.inverse ? -1 : 1;
    const Strides2 &by_first = task.first_strides, &by_second = task.second_strides;
    for (int64_t t = 0; t < tokens; ++t, cos += task.table_width(), sin += task.table_width()) {
        const int64_t at_first = b * by_first.b + (first + t) * by_first.t;
        const int64_t at_second = b * by_second.b + (first + t) * by_second.t;
        if (task.fixed_point) {
            const uint64_t position = static_cast<const int64_t*>(task.first)[at_first];
            const int64_t* frequencies = static_cast<const int64_t*>(task.second) + at_second;
            const float factor = float(task.factors[b * task.factors_b]);
            for (int64_t p = 0; p < pairs; ++p) {
                float c, s;
                cos_sin(int64_t(position * uint64_t(frequencies[p * by_second.p])), factor, c, s);
                cos[p] = c, sin[p] = sign * s;
            }
        } else {
            const Real* c = static_cast<const Real*>(task.first) + at_first;
            const Real* s = static_cast<const Real*>(task.second) + at_second;
            for (int64_t p = 0; p < pairs; ++p) cos[p] = c[p * by_first.p];
            for (int64_t p = 0; p < pairs; ++p) sin[p] = sign * s[p * by_second.p];
        }
        if (task.interleaved) {  // spread to two values per pair, from the end because both overlap
            for (int64_t p = pairs; p--;) {
                cos[2 * p] = cos[2 * p + 1] = cos[p];
                sin[2 * p + 1] = sin[p], sin[2 * p] = -sin[p];
            }
        }
    }
}

// --- rotation --------------------------------------------------------------------------------------------------------

template <class Real> using Vector = decltype(load(static_cast<const Real*>(nullptr)));

// Exchange the two elements of each pair of neighbors.
template <class Values> inline Values swap_neighbors(Values x) {
#if defined(__clang__)
    Values exchanged;
    for (int i = 0; i < LANES; ++i) exchanged[i] = x[i ^ 1];
    return exchanged;
#else
    decltype(x == x) neighbors;
    for (int i = 0; i < LANES; ++i) neighbors[i] = i ^ 1;
    return __builtin_shuffle(x, neighbors);
#endif
}

// Both layouts define `rotate` for a whole vector of table values and `rotate_partial` for fewer than LANES of them.

// The second channel of a pair is `pairs` channels after the first.
struct Half {
    static constexpr int channels_per_table_value = 2;
    int64_t pairs;

    template <class X, class Values> void rotate(const X* x, X* out, Values cos, Values sin) const {
        rotate(x, x + pairs, out, out + pairs, cos, sin);
    }
    template <class X, class Values>
    static void rotate(const X* x_a, const X* x_b, X* out_a, X* out_b, Values cos, Values sin) {
        const Values a = load(x_a), b = load(x_b);
        store(out_a, a * cos - b * sin);
        store(out_b, b * cos + a * sin);
    }
    template <class X, class Values>
    void rotate_partial(const X* x, X* out, int64_t count, Values cos, Values sin) const {
        X a[LANES]{}, b[LANES]{};
        std::copy_n(x, count, a), std::copy_n(x + pairs, count, b);
        rotate(a, b, a, b, cos, sin);
        std::copy_n(a, count, out), std::copy_n(b, count, out + pairs);
    }
};

// The table repeats cos for both channels of a pair, and holds -sin for the first and sin for the second.
struct Interleaved {
    static constexpr int channels_per_table_value = 1;

    template <class X, class Values> void rotate(const X* x, X* out, Values cos, Values sin) const {
        const Values values = load(x);
        store(out, values * cos + swap_neighbors(values) * sin);
    }
    template <class X, class Values>
    void rotate_partial(const X* x, X* out, int64_t count, Values cos, Values sin) const {
        X values[LANES]{};
        std::copy_n(x, count, values);
        rotate(values, values, cos, sin);
        std::copy_n(values, count, out);
    }
};

// Equally spaced rows of channels: the heads of one token, or the tokens of one head. Steps are in elements.
template <class X> struct Rows {
    const X* x;
    X* out;
    int64_t count, x_step, out_step, table_step;
};

// Prefetch distance in bytes. Half precision needs so much arithmetic per byte that without prefetching its loads are
// issued too late to keep memory busy.
constexpr int PREFETCH_BYTES = 2048;

// Rotate the first `vectors` vectors of every row. A table that all rows share stays in registers.
template <int vectors, bool shared_table, class X, class Real, class Layout>
void rotate_vectors(Layout layout, Rows<X> rows, const Real* cos, const Real* sin) {
    constexpr int row_bytes = Layout::channels_per_table_value * vectors * LANES * sizeof(X);
    Vector<Real> c[vectors], s[vectors];
    for (int64_t row = 0; row < rows.count; ++row) {
        if (!shared_table || row == 0) {
            for (int i = 0; i < vectors; ++i) c[i] = load(cos + i * LANES), s[i] = load(sin + i * LANES);
            cos += rows.table_step, sin += rows.table_step;
        }
        const X* ahead = rows.x + PREFETCH_BYTES / row_bytes * rows.x_step;
        for (int i = 0; i < row_bytes; i += 64) __builtin_prefetch(reinterpret_cast<const char*>(ahead) + i);
        for (int i = 0; i < vectors; ++i) layout.rotate(rows.x + i * LANES, rows.out + i * LANES, c[i], s[i]);
        rows.x += rows.x_step, rows.out += rows.out_step;
    }
}

// Rotate all channels of every row; `width` is the number of table values per row.
template <bool shared_table, class X, class Real, class Layout>
void rotate_rows(Layout layout, Rows<X> rows, const Real* cos, const Real* sin, int64_t width) {
    while (width >= LANES) {
        const int64_t vectors = std::min<int64_t>(width / LANES, 4), done = vectors * LANES;
        if (vectors == 4) rotate_vectors<4, shared_table>(layout, rows, cos, sin);
        else if (vectors == 3) rotate_vectors<3, shared_table>(layout, rows, cos, sin);
        else if (vectors == 2) rotate_vectors<2, shared_table>(layout, rows, cos, sin);
        else rotate_vectors<1, shared_table>(layout, rows, cos, sin);
        rows.x += done, rows.out += done, cos += done, sin += done, width -= done;
    }
    for (int64_t row = 0; width && row < rows.count; ++row) {
        layout.rotate_partial(rows.x, rows.out, width, load(cos), load(sin));
        rows.x += rows.x_step, rows.out += rows.out_step, cos += rows.table_step, sin += rows.table_step;
    }
}

// The same for the layout of the task. Copy the channels that do not rotate, unless the task is in place.
template <bool shared_table, class X, class Real>
void rotate_rows(const Task& task, Rows<X> rows, const Real* cos, const Real* sin) {
    Rows<X> rotary = rows;
    rotary.x += task.start, rotary.out += task.start;
    if (task.interleaved) rotate_rows<shared_table>(Interleaved{}, rotary, cos, sin, task.table_width());
    else rotate_rows<shared_table>(Half{task.pairs}, rotary, cos, sin, task.table_width());
    const int64_t end = task.start + 2 * task.pairs;
    if (rows.x == rows.out || end - task.start == task.channels) return;
    for (int64_t row = 0; row < rows.count; ++row) {
        const X* x = rows.x + row * rows.x_step;
        X* out = rows.out + row * rows.out_step;
        std::copy(x, x + task.start, out);
        std::copy(x + end, x + task.channels, out + end);
    }
}

// Rotate `tokens` tokens from `first` on of all heads of q or k, in the order in which they lie in memory.
template <class X, class Real>
void rotate_heads(const Task& task, int64_t q_or_k, int64_t b, int64_t first, int64_t tokens, const Real* cos,
                  const Real* sin) {
    const HeadLayout& layout = task.layouts[q_or_k];
    const Strides3 &in = layout.x_strides, &to = layout.out_strides;
    const X* x = reinterpret_cast<const X*>(task.heads[q_or_k].x) + b * in.b + first * in.t;
    X* out = reinterpret_cast<X*>(task.heads[q_or_k].out) + b * to.b + first * to.t;
    const int64_t width = task.table_width();
    if (in.h <= in.t) {
        for (int64_t t = 0; t < tokens; ++t) {
            const Rows<X> heads_of_token{x + t * in.t, out + t * to.t, layout.heads, in.h, to.h, 0};
            rotate_rows<true>(task, heads_of_token, cos + t * width, sin + t * width);
        }
    } else {
        for (int64_t h = 0; h < layout.heads; ++h)
            rotate_rows<false>(task, Rows<X>{x + h * in.h, out + h * to.h, tokens, in.t, to.t, width}, cos, sin);
    }
}

constexpr int64_t BLOCK_TOKENS = 32;  // tokens per table, so that the table fits the L1 cache

// Ask Linux for 2 MiB pages for a large new output. New memory is mapped page by page when it is first written: with
// pages of 4 KiB that takes three times as long as the rotation, with 2 MiB as long as the rotation.
void request_large_pages(const Task& task, int64_t q_or_k, int64_t element_size) {
#if defined(MADV_HUGEPAGE)
    const auto last_offset = [](int64_t count, int64_t stride) { return (count - 1) * stride; };
    const HeadLayout& layout = task.layouts[q_or_k];
    const Strides3& strides = layout.out_strides;
    const int64_t elements = last_offset(task.batch, strides.b) + last_offset(layout.heads, strides.h) +
                             last_offset(task.tokens, strides.t) + task.channels;
    const char *x = task.heads[q_or_k].x, *out = task.heads[q_or_k].out;
    const uintptr_t page = 4096, large = 2 << 20, begin = reinterpret_cast<uintptr_t>(out);
    const uintptr_t from = (begin + page - 1) / page * page, to = (begin + elements * element_size) / page * page;
    if (x != out && from + 2 * large < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

// Rotate blocks `from` .. `to` - 1, each of up to BLOCK_TOKENS tokens of one row of the batch.
template <class X, class Real> void rotate_blocks(const Task& task, int64_t blocks_of_row, int64_t from, int64_t to) {
    // A vector load for the last token may extend past its values.
    const int64_t table_size = BLOCK_TOKENS * task.table_width() + LANES;
    std::unique_ptr<Real[]> tables(new Real[2 * table_size]);
    Real *cos = tables.get(), *sin = cos + table_size;
    for (int64_t block = from; block < to; ++block) {
        const int64_t b = block / blocks_of_row, first = block % blocks_of_row * BLOCK_TOKENS;
        const int64_t tokens = std::min(BLOCK_TOKENS, task.tokens - first);
        fill_table(task, b, first, tokens, cos, sin);
        for (int64_t i = 0; i < task.tensors; ++i) rotate_heads<X>(task, i, b, first, tokens, cos, sin);
    }
}

template <class X, class Real> void rotate(const Task& task) {
    if (task.batch * task.tokens == 0) return;
    for (int64_t i = 0; i < task.tensors; ++i) request_large_pages(task, i, sizeof(X));
    const int64_t blocks_of_row = (task.tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS, blocks = task.batch * blocks_of_row;
    // Even a parallel region with a single thread takes 1 us, as long as a step of decoding.
    if (task.threads == 1) return rotate_blocks<X, Real>(task, blocks_of_row, 0, blocks);
#pragma omp parallel for schedule(static) num_threads(task.threads)
    for (int64_t part = 0; part < task.threads; ++part)
        rotate_blocks<X, Real>(task, blocks_of_row, blocks * part / task.threads, blocks * (part + 1) / task.threads);
}

}  // namespace

// Return how advanced the instruction set of this build is. Return 0 if this CPU lacks it, or if the caller's plan has
// another size.
extern "C" int ropewalk_support_level(int plan_bytes) {
    if (plan_bytes != sizeof(Plan)) return 0;
#if !defined(__x86_64__)
    return 1;
#elif !defined(__AVX2__)
    return 1;
#elif !defined(__AVX512F__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 2 : 0;
#else
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if !defined(__AVX512BF16__)
    return has_avx512 ? 3 : 0;
#else
    return has_avx512 && __builtin_cpu_supports("avx512bf16") ? 4 : 0;
#endif
#endif
}

extern "C" void ropewalk_rotate(const char* plan, const char* addresses, int threads) {
    Task task;
    static_assert(sizeof(Plan) == 31 * 8 && sizeof(Addresses) == 7 * 8);
    std::memcpy(static_cast<Plan*>(&task), plan, sizeof(Plan));
    std::memcpy(static_cast<Addresses*>(&task), addresses, sizeof(Addresses));
    task.threads = threads;
    switch (task.dtype) {
        case FLOAT64: return rotate<double, double>(task);
        case FLOAT32: return rotate<float, float>(task);
        case BFLOAT16: return rotate<BFloat16, float>(task);
        default: return rotate<Float16, float>(task);
    }
}
