// Rounding to a few levels and its gradients, in one pass each way.
//
// y = clamp(round((x - offset) / step), low, high) * step + offset, a step for each row or one for all. The straight-through
// gradient passes where x is within the levels; a step's and an offset's gradients are sums over the elements they serve
// (Esser et al. 2020, arXiv:1902.08153; Bhalgat et al. 2020, arXiv:2004.09576).
//
// What is computed of rounded numbers alone is computed once for each level: a table in place of a function, and another in
// place of its derivative. One step for all then, and level 0 is the lowest.
//
// Letters: R rows, C columns.

#include <cmath>
#include <cstdint>

// One step for all: steps[1] and offset apply to every row. A step for each row: steps[R], and offset is 0.
extern "C" void archbench_quantise(const float* x, float* y, int64_t R, int64_t C, const float* steps, int64_t stride,
                                   float offset, float low, float high, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < R; ++r) {
        const float step = steps[r * stride], inverse = 1 / step;
        const float* from = x + r * C;
        float* to = y + r * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            float level = (from[c] - offset) * inverse;
            level = level < low ? low : level > high ? high : level;
            to[c] = std::nearbyint(level) * step + offset;
        }
    }
}

// dx[R][C], and for each row the sums dstep[R] and doffset[R] (the caller adds rows up where they share a step).
extern "C" void archbench_quantise_backward(const float* x, const float* dy, float* dx, float* dstep, float* doffset,
                                            int64_t R, int64_t C, const float* steps, int64_t stride, float offset,
                                            float low, float high, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < R; ++r) {
        const float inverse = 1 / steps[r * stride];
        const float *from = x + r * C, *slope = dy + r * C;
        float* to = dx + r * C;
        float by_step = 0, by_offset = 0;
#pragma omp simd reduction(+ : by_step, by_offset)
        for (int64_t c = 0; c < C; ++c) {
            const float level = (from[c] - offset) * inverse;
            const bool inside = level >= low && level <= high;
            const float clamped = level < low ? low : level > high ? high : level;
            const float within = inside ? slope[c] : 0.0f;
            to[c] = within;
            by_step += slope[c] * std::nearbyint(clamped) - within * level;
            by_offset += slope[c] - within;
        }
        dstep[r] = by_step;
        doffset[r] = by_offset;
    }
}

// y = values[level of x], of at most 256 levels from 0 to high.
extern "C" void archbench_look_up(const float* x, float* y, int64_t count, float step, float offset, float high,
                                  const float* values, int threads) {
    const float inverse = 1 / step;
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < count; ++i) {
        const float level = (x[i] - offset) * inverse;
        const float within = level > 0 ? (level > high ? high : level) : 0;  // NaN has level 0 here, and stays NaN below
        y[i] = level == level ? values[int(std::nearbyint(within))] : level;
    }
}

// As archbench_quantise_backward, dy being that of the looked up number: slopes[level] times it reaches the rounded one.
extern "C" void archbench_look_up_backward(const float* x, const float* dy, float* dx, float* dstep, float* doffset, int64_t R,
                                           int64_t C, float step, float offset, float high, const float* slopes, int threads) {
    const float inverse = 1 / step;
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < R; ++r) {
        float by_step = 0, by_offset = 0;
#pragma omp simd reduction(+ : by_step, by_offset)
        for (int64_t c = 0; c < C; ++c) {
            const float level = (x[r * C + c] - offset) * inverse;
            const bool inside = level >= 0 && level <= high;
            const float rounded = std::nearbyint(level > 0 ? (level > high ? high : level) : 0);
            const float slope = dy[r * C + c] * slopes[int(rounded)];
            const float within = inside ? slope : 0.0f;
            dx[r * C + c] = within;
            by_step += slope * rounded - within * level;
            by_offset += slope - within;
        }
        dstep[r] = by_step;
        doffset[r] = by_offset;
    }
}
