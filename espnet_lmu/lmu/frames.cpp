// The loop over frames of the original LMU on a CPU, in float32; native.py calls it and says what it computes.
//
// A frame is a product of a few rows with a matrix that stays in the second-level cache. Called through torch it costs
// more in the call, the copies and the elementwise operation after it than in arithmetic. Here a tile of the result
// stays in registers from what drives it to its activation, and no frame returns to the interpreter.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#define INLINE inline __attribute__((always_inline))  // into the functions at the end, each for one instruction set
#define UNROLL _Pragma("GCC unroll 8")

struct Frames {
    float *rows;  // the row before the first to fill: row r of sequence b is at rows + r * frame_stride + b * row_stride
    int64_t frame_stride, row_stride;  // frames run backward in time by a negative frame_stride
    const float *outputs;  // null: forward; else tanh's outputs, moving along with rows
    int64_t output_frame_stride, output_row_stride;
    const float *matrix;  // (size, size), rows matrix_stride apart, a multiple of 16
    int64_t matrix_stride;
    int64_t count, batch, size, hidden_size;
};

template <int LANES> struct Vector {
    typedef float Floats __attribute__((vector_size(LANES * 4)));
    typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4)));
    typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

    static INLINE Floats load(const float *from, int64_t lanes) {
        Floats values = {};
        if (lanes >= LANES)
            values = *reinterpret_cast<const Unaligned *>(from);
        else if (lanes > 0)
            memcpy(&values, from, lanes * sizeof(float));
        return values;
    }

    static INLINE void store(float *to, Floats values, int64_t lanes) {
        if (lanes >= LANES)
            *reinterpret_cast<Unaligned *>(to) = values;
        else if (lanes > 0)
            memcpy(to, &values, lanes * sizeof(float));
    }

    // tanh x = E / (E + 2) with E = exp(2 |x|) - 1 = 2^k (exp(r) - 1) + 2^k - 1, where 2 |x| = k ln 2 + r and exp(r) - 1
    // is the start of its Taylor series: for |r| <= ln 2 / 2 what follows is below float32's precision.
    static INLINE Floats tanh(Floats x) {
        const Floats zero = {};
        const Ints sign = reinterpret_cast<Ints>(x) & (INT32_MIN + Ints{});
        Floats magnitude = reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) ^ sign);
        const Floats largest = zero + 10.0f;  // from where on tanh is 1; a NaN stays one
        magnitude = magnitude > largest ? largest : magnitude;
        const Floats doubled = magnitude + magnitude;
        const Floats shift = zero + 12582912.0f;  // 1.5 x 2^23: added, it leaves an integer, k, in the lowest bits
        const Floats shifted = doubled * 1.44269504f + shift;
        const Floats steps = shifted - shift;
        // ln 2 in two parts, of which the first has few enough bits that its multiples are exact
        const Floats r = doubled - steps * 0.693359375f - steps * -2.12194440e-4f;
        Floats series = r * (1.0f / 5040) + 1.0f / 720;
        series = series * r + 1.0f / 120;
        series = series * r + 1.0f / 24;
        series = series * r + 1.0f / 6;
        series = series * r + 0.5f;
        series = series * (r * r) + r;
        const Floats scale = reinterpret_cast<Floats>((reinterpret_cast<Ints>(shifted) << 23) + (127 << 23));
        const Floats E = series * scale + (scale - 1.0f);
        const Floats y = E / (E + 2.0f);
        return reinterpret_cast<Floats>(reinterpret_cast<Ints>(y) | sign);
    }
};

// ROWS sequences by VECTORS vectors of columns of one frame.
template <int LANES, int ROWS, int VECTORS>
INLINE void tile(const Frames &f, const float *before, float *after, const float *outputs, int64_t row, int64_t column) {
    using V = Vector<LANES>;
    using Floats = typename V::Floats;
    before += row * f.row_stride;
    after += row * f.row_stride + column;
    const float *matrix = f.matrix + column;
    const int64_t hidden = f.hidden_size - column;
    const int64_t columns = VECTORS == 1 ? f.size - column : LANES;  // of a vector; three are taken if all are whole

    Floats sums[ROWS][VECTORS];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < VECTORS; j++) sums[i][j] = V::load(after + i * f.row_stride + j * LANES, columns);
    for (int64_t k = 0; k < f.size; k++) {
        Floats of_matrix[VECTORS];
        UNROLL for (int j = 0; j < VECTORS; j++) of_matrix[j] = V::load(matrix + k * f.matrix_stride + j * LANES, LANES);
        UNROLL for (int i = 0; i < ROWS; i++) {
            const Floats factor = before[i * f.row_stride + k] - Floats{};  // in all lanes
            UNROLL for (int j = 0; j < VECTORS; j++) sums[i][j] += factor * of_matrix[j];
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < VECTORS; j++) {
            const int64_t lanes = hidden - j * LANES;  // of this vector that have tanh
            if (lanes > 0) {
                Floats active;
                if (outputs == nullptr) {
                    active = V::tanh(sums[i][j]);
                } else {
                    const float *output = outputs + (row + i) * f.output_row_stride + column + j * LANES;
                    const Floats y = V::load(output, lanes);
                    active = sums[i][j] * (1.0f - y * y);
                }
                if (lanes >= LANES)
                    sums[i][j] = active;
                else
                    memcpy(&sums[i][j], &active, lanes * sizeof(float));
            }
            V::store(after + i * f.row_stride + j * LANES, sums[i][j], columns);
        }
}

// As many as ROWS sequences from row on.
template <int LANES, int ROWS, int VECTORS>
INLINE void tile_of(int64_t rows, const Frames &f, const float *before, float *after, const float *outputs, int64_t row,
                    int64_t column) {
    if (rows == ROWS)
        tile<LANES, ROWS, VECTORS>(f, before, after, outputs, row, column);
    else if constexpr (ROWS > 1)
        tile_of<LANES, ROWS - 1, VECTORS>(rows, f, before, after, outputs, row, column);
}

// ROWS by 3 vectors of sums, 3 of the matrix and one factor fill the registers.
template <int LANES, int ROWS> INLINE void run(const Frames &f) {
    const int64_t tiles = (f.batch + ROWS - 1) / ROWS;
    float *after = f.rows;
    const float *outputs = f.outputs;
    for (int64_t frame = 0; frame < f.count; frame++) {
        const float *before = after;
        after += f.frame_stride;
        if (outputs != nullptr) outputs += f.output_frame_stride;
        for (int64_t column = 0; column < f.size;) {
            const bool wide = f.size - column >= 3 * LANES;
            for (int64_t number = 0; number < tiles; number++) {
                const int64_t row = f.batch * number / tiles, rows = f.batch * (number + 1) / tiles - row;
                if (wide)
                    tile_of<LANES, ROWS, 3>(rows, f, before, after, outputs, row, column);
                else
                    tile_of<LANES, ROWS, 1>(rows, f, before, after, outputs, row, column);
            }
            column += wide ? 3 * LANES : LANES;
        }
    }
}

void run_on_any(const Frames &f) { run<4, 4>(f); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void run_with_avx2(const Frames &f) { run<8, 4>(f); }
__attribute__((target("avx512f,fma"))) void run_with_avx512(const Frames &f) { run<16, 8>(f); }
#endif

void run_flushing(int64_t lanes, const Frames &frames) {
#if defined(__x86_64__)
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);  // a memory that decays through silence reaches denormal numbers: flush them to zero
    if (lanes == 16)
        run_with_avx512(frames);
    else if (lanes == 8)
        run_with_avx2(frames);
    else
        run_on_any(frames);
    _mm_setcsr(mode);
#else
    run_on_any(frames);
#endif
}

// The batch in parts, each a thread's for all frames but where another thread has nothing left to do: then whoever has
// run SEGMENT more frames of its part leaves it to that one. On a core that another process shares, a part takes twice
// as long, and without that all would wait for it.
struct Parts {
    struct Place {
        int32_t part, frame;  // the frames before are done
    };
    static constexpr Place NONE = {-1, 0};
    static constexpr int32_t SEGMENT = 16;

    const Frames frames;
    const int64_t lanes, count;
    std::atomic<int64_t> next, unfinished, waiting;
    std::atomic<Place> left;

    Parts(const Frames &frames, int64_t lanes, int64_t count)
        : frames(frames), lanes(lanes), count(count), next(0), unfinished(count), waiting(0), left(NONE) {}

    void run_segment(Place place) const {
        Frames f = frames;
        const int64_t first = f.batch * place.part / count, end = f.batch * (place.part + 1) / count;
        f.batch = end - first;
        f.rows += first * f.row_stride + place.frame * f.frame_stride;
        if (f.outputs != nullptr) f.outputs += first * f.output_row_stride + place.frame * f.output_frame_stride;
        f.count = f.count - place.frame < SEGMENT ? f.count - place.frame : SEGMENT;
        run_flushing(lanes, f);
    }

    bool take_new(Place &place) {
        place = {static_cast<int32_t>(next++), 0};
        return place.part < count;
    }

    bool take_left(Place &place) {
        waiting++;
        while ((place = left.exchange(NONE)).part < 0 && unfinished > 0) std::this_thread::yield();
        waiting--;
        return place.part >= 0;
    }

    // Whoever leaves a part does so to one who waits, and who then sees that it is not finished.
    bool leave(Place place) {
        Place none = NONE;
        return waiting > 0 && left.compare_exchange_strong(none, place);
    }

    void run() {
        Place place;
        if (!take_new(place)) return;  // there are more threads than parts
        do {
            for (; place.frame < frames.count; place.frame += SEGMENT) {
                if (leave(place)) return;
                run_segment(place);
            }
            unfinished--;
        } while (take_new(place) || take_left(place));
    }
};

}  // namespace

extern "C" int64_t widest_vector() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

// Other arguments need another name: an installed library may be older than the native.py that loads it.
// in_parallel(function, argument, threads, 0) calls function(argument) in as many threads; null for one thread.
extern "C" void run_frames_of_parts(int64_t lanes, float *rows, int64_t frame_stride, int64_t row_stride,
                                    const float *outputs, int64_t output_frame_stride, int64_t output_row_stride,
                                    const float *matrix, int64_t matrix_stride, int64_t count, int64_t batch,
                                    int64_t size, int64_t hidden_size, int64_t number_of_parts, int64_t threads,
                                    void (*in_parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    const Frames frames = {rows,   frame_stride,  row_stride, outputs, output_frame_stride, output_row_stride,
                           matrix, matrix_stride, count,      batch,   size,                hidden_size};
    Parts parts(frames, lanes, number_of_parts);
    if (in_parallel != nullptr)
        in_parallel([](void *all) { static_cast<Parts *>(all)->run(); }, &parts, static_cast<unsigned>(threads), 0);
    else
        parts.run();
}
