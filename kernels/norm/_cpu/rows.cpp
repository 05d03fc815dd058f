// Normalization of rows: layer and root-mean-square, forward and backward.
//
// A row is read once from memory; its later passes find it in the first-level cache. Gradients of weight and bias are
// summed over a fixed number of rows in float, then over those sums in double: the same for every number of threads.
//
// With n = (x - mean) / deviation and weight w, dx = (w dy - mean(w dy) - n mean(w dy n)) / deviation over the row; the
// root mean square moves with no mean, and the first mean is not there.
//
// Letters: R rows, D features.

#include <vector>

#include "vectors.hpp"

namespace {

using namespace archbench;

constexpr int64_t CHUNK = 64;  // rows whose gradients of the weights are summed in float

struct Rows {
    int64_t R, D;
    bool centred;  // layer: the mean is subtracted
    double eps;
    int threads;
};

template <class Element>
Moments moments(const Rows& at, const Element* x) {
    if (at.centred) {
        Collector<Element> row;
        row.add(x, at.D);
        return row.done();
    }
    Moments found{double(at.D), 0, 0};
    for (int64_t start = 0; start < at.D; start += 4096) {
        Lanes squares;
        over(std::min<int64_t>(4096, at.D - start), [&](int64_t i, int n, int u) {
            const Vector v = take(x + start + i, n);
            squares.part[u] += v * v;
        });
        found.squares += squares.total();
    }
    return found;
}

// How n follows from x: (x - high) * scale + shift.
struct Normal {
    Vector high, scale, shift;
    Normal(double mean, double inverse) {
        const Split m(mean);
        high = all(m.high), scale = all(float(inverse)), shift = all(float(-m.low * inverse));
    }
    Vector operator()(Vector x) const { return (x - high) * scale + shift; }
};

template <bool STREAM, class Element>
void forward(const Rows& at, const Element* x, const float* weight, const float* bias, double* mean, double* inverse,
             Element* y) {
#pragma omp parallel num_threads(at.threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < at.R; ++r) {
            const Element* from = x + r * at.D;
            const Moments found = moments(at, from);
            mean[r] = found.mean, inverse[r] = 1 / std::sqrt(found.variance() + at.eps);
            const Normal normal(mean[r], inverse[r]);
            if (bias)
                write<STREAM>(y + r * at.D, at.D, [&](int64_t i, int n) {
                    return normal(take(from + i, n)) * take(weight + i, n) + take(bias + i, n);
                });
            else
                write<STREAM>(y + r * at.D, at.D,
                              [&](int64_t i, int n) { return normal(take(from + i, n)) * take(weight + i, n); });
        }
        streamed();
    }
}

inline void put(float* p, int n, Vector x) {
    if (n == WIDTH) store(p, x);
    else store_part(p, n, x);
}

template <bool STREAM, class Element>
void backward(const Rows& at, const Element* x, const Element* dy, const float* weight, const double* mean,
              const double* inverse, Element* dx, float* dweight, float* dbias) {
    const int64_t chunks = (at.R + CHUNK - 1) / CHUNK;
    std::vector<float> partial(2 * chunks * at.D);  // of each chunk: sum(dy n), then sum(dy)
#pragma omp parallel num_threads(at.threads)
    {
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            float *levers = &partial[2 * chunk * at.D], *slopes = levers + at.D;
            for (int64_t r = chunk * CHUNK; r < std::min(at.R, (chunk + 1) * CHUNK); ++r) {
                const Element *g = dy + r * at.D, *f = x + r * at.D;
                const Normal normal(mean[r], inverse[r]);
                double first = 0, second = 0;
                for (int64_t start = 0; start < at.D; start += 4096) {
                    Lanes offsets, tilts;
                    over(std::min<int64_t>(4096, at.D - start), [&](int64_t k, int n, int u) {
                        const int64_t i = start + k;
                        const Vector slope = take(g + i, n), lever = slope * normal(take(f + i, n));
                        const Vector w = take(weight + i, n);
                        put(slopes + i, n, take(slopes + i, n) + slope);
                        put(levers + i, n, take(levers + i, n) + lever);
                        offsets.part[u] += w * slope, tilts.part[u] += w * lever;
                    });
                    first += offsets.total(), second += tilts.total();
                }
                const double offset = at.centred ? first / double(at.D) : 0, tilt = second / double(at.D);
                const Vector a = all(float(inverse[r])), b = all(float(-tilt * inverse[r]));
                const Vector c = all(float(-offset * inverse[r]));
                write<STREAM>(dx + r * at.D, at.D, [&](int64_t i, int n) {
                    return take(g + i, n) * take(weight + i, n) * a + (normal(take(f + i, n)) * b + c);
                });
            }
        }
        streamed();
#pragma omp for schedule(static)
        for (int64_t d = 0; d < at.D; ++d) {
            double lever = 0, slope = 0;
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                lever += partial[2 * chunk * at.D + d];
                slope += partial[(2 * chunk + 1) * at.D + d];
            }
            dweight[d] = float(lever), dbias[d] = float(slope);
        }
    }
}

}  // namespace

// bias is null for the root mean square; statistics: mean[R], then 1 / deviation [R].
extern "C" void archbench_rows_forward(int is_bf16, int64_t R, int64_t D, int centred, double eps, int threads, int around,
                                       const void* x, const float* weight, const float* bias, double* statistics,
                                       void* y) {
    const Rows at{R, D, centred != 0, eps, threads};
    const auto go = [&](auto element) {
        using Element = decltype(element);
        const auto from = static_cast<const Element*>(x);
        const auto to = static_cast<Element*>(y);
        if (around) forward<true>(at, from, weight, bias, statistics, statistics + R, to);
        else forward<false>(at, from, weight, bias, statistics, statistics + R, to);
    };
    if (is_bf16) go(bf16{});
    else go(float{});
}

extern "C" void archbench_rows_backward(int is_bf16, int64_t R, int64_t D, int centred, double eps, int threads,
                                        int around, const void* x, const void* dy, const float* weight,
                                        const double* statistics, void* dx, float* dweight, float* dbias) {
    const Rows at{R, D, centred != 0, eps, threads};
    const auto go = [&](auto element) {
        using Element = decltype(element);
        const auto from = static_cast<const Element*>(x), slope = static_cast<const Element*>(dy);
        const auto to = static_cast<Element*>(dx);
        if (around) backward<true>(at, from, slope, weight, statistics, statistics + R, to, dweight, dbias);
        else backward<false>(at, from, slope, weight, statistics, statistics + R, to, dweight, dbias);
    };
    if (is_bf16) go(bf16{});
    else go(float{});
}
