// The rotation on a CPU, as base.py's `Backend.turn` describes it: q and k in one call, each read once and written once.
//
// Plain C++ with a C interface: it needs no headers of torch and fits every version. The loops are written for the
// compiler's vectorizer; the same source is compiled for several instruction sets.
//
// Shapes: B batch, H heads, T tokens, D channels of a head, P pairs.

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

enum Type : int64_t { FLOAT64 = 0, FLOAT32 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

struct Strides3 { int64_t b, h, t; };   // in elements
struct Strides2 { int64_t b, t, p; };

struct Heads {  // one of q and k
    const char* x;
    char* out;
    int64_t heads;
    Strides3 of_x, of_out;
};

struct Task {  // all int64: packed by cpu.py in this order
    int64_t type, tensors, batch, tokens, channels, start, pairs, interleaved, inverse, threads;
    const char *cos, *sin;  // tables, or null
    Strides2 of_cos, of_sin;
    const int64_t* positions;
    int64_t positions_b, positions_t;
    const int64_t* turns;
    int64_t turns_b, turns_p;
    const double* factors;
    int64_t factors_b;
    Heads heads[2];

    int64_t width() const { return interleaved ? 2 * pairs : pairs; }  // numbers of a token in a table
};

// --- numbers ---------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)  // as many floats as a register holds: compilers take longer vectors apart badly
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
    const Words magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
    // Rebias the exponent by a product, which subnormal numbers survive; infinities and NaN are beyond it.
    const Words value = Words(Floats(magnitude) * 0x1p112f);
    return Floats((magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : value) | sign);
#endif
}

// Rounded to nearest, ties to even.
inline void store(double* at, Doubles x) { to_memory(at, x); }
inline void store(float* at, Floats x) { to_memory(at, x); }
inline void store(BFloat16* at, Floats x) {
#if defined(__AVX512BF16__)  // subnormal numbers become 0
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
    const Words bits = Words(x), magnitude = bits & 0x7fffffff;
    const Words normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // Added to 0.5, a subnormal number has its bits rounded to where a half keeps them.
    const Words subnormal = Words(Floats(magnitude) + 0.5f) - 0x3f000000;
    Words half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x47800000 ? Words{} + 0x7c00 : half;  // 65,536 and more; what rounds up to it carries by itself
    half = magnitude > 0x7f800000 ? Words{} + 0x7e00 : half;
    to_memory(at, __builtin_convertvector(half | (bits >> 16 & 0x8000), Shorts));
#endif
}

// --- angles ----------------------------------------------------------------------------------------------------------

// cos and sin of turns in units of 2^-64: the nearest quarter of a turn is taken off in integers, the rest is within
// +-pi/4, where polynomials are right to 3e-8 (least squares at Chebyshev nodes, in the square of the angle).
inline void cos_sin(int64_t turns, float factor, float& cos, float& sin) {
    const uint64_t quarter = (uint64_t(turns) + (1ull << 61)) >> 62;
    const int32_t rest = int32_t(int64_t(uint64_t(turns) - (quarter << 62)) >> 31);
    const float angle = float(rest) * 7.31459163e-10f;  // 2 pi / 2^33
    const float square = angle * angle;
    const float even = 1 + square * (-0.5f + square * (0.0416666227f + square * (-0.0013886748f + square * 2.43892034e-05f)));
    const float odd = angle + angle * square * (-0.166666502f + square * (0.00833195798f + square * -0.000194934967f));
    const bool swapped = quarter & 1;
    const float c = swapped ? odd : even, s = swapped ? even : odd;
    cos = ((quarter + 1) & 2 ? -c : c) * factor;
    sin = (quarter & 2 ? -s : s) * factor;
}

// The tables of some tokens of one row of the batch, as `Half` and `Interleaved` read them.
template <class Real>
void form_tables(const Task& task, int64_t b, int64_t first, int64_t tokens, Real* cos, Real* sin) {
    const int64_t pairs = task.pairs;
    const Real sign = task.inverse ? -1 : 1;
    for (int64_t t = 0; t < tokens; ++t, cos += task.width(), sin += task.width()) {
        if (task.cos) {
            const Real* c = reinterpret_cast<const Real*>(task.cos) + b * task.of_cos.b + (first + t) * task.of_cos.t;
            const Real* s = reinterpret_cast<const Real*>(task.sin) + b * task.of_sin.b + (first + t) * task.of_sin.t;
            for (int64_t p = 0; p < pairs; ++p) cos[p] = c[p * task.of_cos.p];
            for (int64_t p = 0; p < pairs; ++p) sin[p] = sign * s[p * task.of_sin.p];
        } else {
            const uint64_t position = task.positions[b * task.positions_b + (first + t) * task.positions_t];
            const int64_t* turns = task.turns + b * task.turns_b;
            const float factor = float(task.factors[b * task.factors_b]);
            for (int64_t p = 0; p < pairs; ++p) {
                float c, s;
                cos_sin(int64_t(position * uint64_t(turns[p * task.turns_p])), factor, c, s);
                cos[p] = c, sin[p] = sign * s;
            }
        }
        if (task.interleaved) {
            for (int64_t p = pairs; p--;) {
                cos[2 * p] = cos[2 * p + 1] = cos[p];
                sin[2 * p + 1] = sin[p], sin[2 * p] = -sin[p];
            }
        }
    }
}

// --- turning ---------------------------------------------------------------------------------------------------------

template <class Real> using Vector = decltype(load(static_cast<const Real*>(nullptr)));

// Neighbours exchanged.
template <class Numbers> inline Numbers swapped(Numbers x) {
#if defined(__clang__)
    Numbers exchanged;
    for (int i = 0; i < LANES; ++i) exchanged[i] = x[i ^ 1];
    return exchanged;
#else
    decltype(x == x) neighbours;
    for (int i = 0; i < LANES; ++i) neighbours[i] = i ^ 1;
    return __builtin_shuffle(x, neighbours);
#endif
}

struct Half {  // the second channel of a pair lies `pairs` after the first
    static constexpr int channels = 2;  // of x to one of a table
    int64_t pairs;

    template <class X, class Numbers> void turn(const X* x, X* out, Numbers cos, Numbers sin) const {
        turn(x, x + pairs, out, out + pairs, cos, sin);
    }
    template <class X, class Numbers>
    static void turn(const X* x_a, const X* x_b, X* out_a, X* out_b, Numbers cos, Numbers sin) {
        const Numbers a = load(x_a), b = load(x_b);
        store(out_a, a * cos - b * sin);
        store(out_b, b * cos + a * sin);
    }
    template <class X, class Numbers> void turn_some(const X* x, X* out, int64_t some, Numbers cos, Numbers sin) const {
        X a[LANES]{}, b[LANES]{};
        std::copy_n(x, some, a), std::copy_n(x + pairs, some, b);
        turn(a, b, a, b, cos, sin);
        std::copy_n(a, some, out), std::copy_n(b, some, out + pairs);
    }
};

struct Interleaved {  // channel by channel: cos is there twice, and sin twice, of the sign that it has in each
    static constexpr int channels = 1;

    template <class X, class Numbers> void turn(const X* x, X* out, Numbers cos, Numbers sin) const {
        const Numbers own = load(x);
        store(out, own * cos + swapped(own) * sin);
    }
    template <class X, class Numbers> void turn_some(const X* x, X* out, int64_t some, Numbers cos, Numbers sin) const {
        X own[LANES]{};
        std::copy_n(x, some, own);
        turn(own, own, cos, sin);
        std::copy_n(own, some, out);
    }
};

template <class X> struct Rows {  // heads of one token, or tokens of one head: numbers to turn, and how far apart
    const X* x;
    X* out;
    int64_t count, x_step, out_step, table_step;
};

// How far ahead memory is asked for, bytes: half precision is so much arithmetic for its bytes that its loads come too
// late by themselves, and memory stands idle.
constexpr int AHEAD = 2048;

// Some vectors of every row. Where the rows share a table it stays in registers.
template <int vectors, bool shared, class X, class Real, class Layout>
void turn_vectors(Layout layout, Rows<X> rows, const Real* cos, const Real* sin) {
    constexpr int row_bytes = Layout::channels * vectors * LANES * sizeof(X);
    Vector<Real> c[vectors], s[vectors];
    for (int64_t row = 0; row < rows.count; ++row) {
        if (!shared || row == 0) {
            for (int i = 0; i < vectors; ++i) c[i] = load(cos + i * LANES), s[i] = load(sin + i * LANES);
            cos += rows.table_step, sin += rows.table_step;
        }
        const X* ahead = rows.x + AHEAD / row_bytes * rows.x_step;
        for (int i = 0; i < row_bytes; i += 64) __builtin_prefetch(reinterpret_cast<const char*>(ahead) + i);
        for (int i = 0; i < vectors; ++i) layout.turn(rows.x + i * LANES, rows.out + i * LANES, c[i], s[i]);
        rows.x += rows.x_step, rows.out += rows.out_step;
    }
}

template <bool shared, class X, class Real, class Layout>
void turn_rows(Layout layout, Rows<X> rows, const Real* cos, const Real* sin, int64_t width) {
    while (width >= LANES) {
        const int64_t vectors = std::min<int64_t>(width / LANES, 4), done = vectors * LANES;
        if (vectors == 4) turn_vectors<4, shared>(layout, rows, cos, sin);
        else if (vectors == 3) turn_vectors<3, shared>(layout, rows, cos, sin);
        else if (vectors == 2) turn_vectors<2, shared>(layout, rows, cos, sin);
        else turn_vectors<1, shared>(layout, rows, cos, sin);
        rows.x += done, rows.out += done, cos += done, sin += done, width -= done;
    }
    for (int64_t row = 0; width && row < rows.count; ++row) {
        layout.turn_some(rows.x, rows.out, width, load(cos), load(sin));
        rows.x += rows.x_step, rows.out += rows.out_step, cos += rows.table_step, sin += rows.table_step;
    }
}

template <bool shared, class X, class Real>
void turn_rows(const Task& task, Rows<X> rows, const Real* cos, const Real* sin) {
    const Rows<X> turning{rows.x + task.start, rows.out + task.start, rows.count, rows.x_step, rows.out_step, rows.table_step};
    if (task.interleaved) turn_rows<shared>(Interleaved{}, turning, cos, sin, task.width());
    else turn_rows<shared>(Half{task.pairs}, turning, cos, sin, task.width());
    const int64_t end = task.start + 2 * task.pairs;
    if (rows.x == rows.out || end - task.start == task.channels) return;
    for (int64_t row = 0; row < rows.count; ++row) {
        const X* x = rows.x + row * rows.x_step;
        X* out = rows.out + row * rows.out_step;
        std::copy(x, x + task.start, out);
        std::copy(x + end, x + task.channels, out + end);
    }
}

// Some tokens of all heads, in the order in which they lie in memory.
template <class X, class Real>
void turn_heads(const Task& task, const Heads& heads, int64_t b, int64_t first, int64_t tokens, const Real* cos, const Real* sin) {
    const Strides3 &in = heads.of_x, &to = heads.of_out;
    const X* x = reinterpret_cast<const X*>(heads.x) + b * in.b + first * in.t;
    X* out = reinterpret_cast<X*>(heads.out) + b * to.b + first * to.t;
    const int64_t width = task.width();
    if (in.h <= in.t) {
        for (int64_t t = 0; t < tokens; ++t) {
            const Rows<X> of_token{x + t * in.t, out + t * to.t, heads.heads, in.h, to.h, 0};
            turn_rows<true>(task, of_token, cos + t * width, sin + t * width);
        }
    } else {
        for (int64_t h = 0; h < heads.heads; ++h)
            turn_rows<false>(task, Rows<X>{x + h * in.h, out + h * to.h, tokens, in.t, to.t, width}, cos, sin);
    }
}

constexpr int64_t TOKENS = 32;  // that are turned with one table, which fits the nearest cache

// New memory of some size is not there yet: it comes when it is first written to, a page at a time. Page by page of 4 KiB
// that takes three times as long as turning; in pages of 2 MiB, as long as turning.
void ask_for_large_pages(const Task& task, const Heads& heads, int64_t size) {
#if defined(MADV_HUGEPAGE)
    const auto last = [](int64_t count, int64_t stride) { return (count - 1) * stride; };
    const int64_t numbers = last(task.batch, heads.of_out.b) + last(heads.heads, heads.of_out.h) +
                            last(task.tokens, heads.of_out.t) + task.channels;
    const uintptr_t page = 4096, large = 2 << 20, begin = reinterpret_cast<uintptr_t>(heads.out);
    const uintptr_t from = (begin + page - 1) / page * page, to = (begin + numbers * size) / page * page;
    if (heads.x != heads.out && from + 2 * large < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

template <class X, class Real> void turn(const Task& task) {
    if (task.batch * task.tokens == 0) return;
    for (int64_t i = 0; i < task.tensors; ++i) ask_for_large_pages(task, task.heads[i], sizeof(X));
    const int64_t blocks = (task.tokens + TOKENS - 1) / TOKENS;
#pragma omp parallel num_threads(int(task.threads)) if (task.threads > 1)
    {
        const int64_t numbers = TOKENS * task.width() + LANES;  // a vector of the last token may reach past it
        std::unique_ptr<Real[]> tables(new Real[2 * numbers]);
        Real *cos = tables.get(), *sin = cos + numbers;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < task.batch * blocks; ++block) {
            const int64_t b = block / blocks, first = block % blocks * TOKENS;
            const int64_t tokens = std::min(TOKENS, task.tokens - first);
            form_tables(task, b, first, tokens, cos, sin);
            for (int64_t i = 0; i < task.tensors; ++i) turn_heads<X>(task, task.heads[i], b, first, tokens, cos, sin);
        }
    }
}

}  // namespace

// How good a fit this processor is for what this was compiled for; 0: it cannot run, or `Task` is not of this size.
extern "C" int ropewalk_fit(int bytes) {
    if (bytes != sizeof(Task)) return 0;
#if !defined(__x86_64__)
    return 1;
#elif !defined(__AVX2__)
    return 1;
#elif !defined(__AVX512F__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 2 : 0;
#else
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if !defined(__AVX512BF16__)
    return runs ? 3 : 0;
#else
    return runs && __builtin_cpu_supports("avx512bf16") ? 4 : 0;
#endif
#endif
}

extern "C" void ropewalk_turn(const int64_t* packed) {
    Task task;
    static_assert(sizeof task == 44 * 8);
    std::memcpy(&task, packed, sizeof task);
    switch (task.type) {
        case FLOAT64: return turn<double, double>(task);
        case FLOAT32: return turn<float, float>(task);
        case BFLOAT16: return turn<BFloat16, float>(task);
        default: return turn<Float16, float>(task);
    }
}
