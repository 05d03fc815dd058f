// Batch normalization of images whose channels are innermost: statistics of columns, forward and backward.
//
// A thread walks over its rows twice, the second time backwards: what it read last is what the cache still holds. Sums are
// formed over chunks of rows and merged in their order: the same for every number of threads.
//
// Letters: R = N H W rows, C channels.

#include <vector>

#include "vectors.hpp"

namespace {

using namespace archbench;

constexpr int64_t CHUNK = 512;  // rows
constexpr int64_t BLOCK = 64;   // rows whose sums are formed in float
constexpr int TOGETHER = 4;     // vectors of channels

struct Columns {
    int64_t R, C;
    double eps;
    int threads;

    int64_t chunks() const { return (R + CHUNK - 1) / CHUNK; }
    int64_t from(int64_t chunk) const { return chunk * CHUNK; }
    int64_t to(int64_t chunk) const { return std::min(R, (chunk + 1) * CHUNK); }
    double inverse(double variance) const { return 1 / std::sqrt(variance + eps); }
};

// Calls body(chunk) for the chunks of the calling thread, the same ones in both directions.
template <class Body>
inline void shared(const Columns& at, bool backwards, Body body) {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = at.chunks() * me / team, end = at.chunks() * (me + 1) / team;
    for (int64_t i = begin; i < end; ++i) body(backwards ? begin + end - 1 - i : i);
#pragma omp barrier
}

// Calls body(c, n, count) for channels c on: ``count`` whole vectors, or one of n channels. count is a constant.
template <class Body>
inline void across(int64_t C, Body body) {
    int64_t c = 0;
    for (; c + TOGETHER * WIDTH <= C; c += TOGETHER * WIDTH) body(c, WIDTH, std::integral_constant<int, TOGETHER>{});
    for (; c + WIDTH <= C; c += WIDTH) body(c, WIDTH, std::integral_constant<int, 1>{});
    if (c < C) body(c, int(C - c), std::integral_constant<int, 1>{});
}

// Of channels c on, over rows: sums of what pair(row, channel, n, u) returns twice.
template <int COUNT, class Pair>
inline void sums(int64_t from, int64_t to, int64_t c, int n, Pair pair, Vector* first, Vector* second) {
    Vector a[COUNT] = {}, b[COUNT] = {};
    for (int64_t r = from; r < to; ++r)
        for (int u = 0; u < COUNT; ++u) pair(r, c + u * WIDTH, n, u, a[u], b[u]);
    for (int u = 0; u < COUNT; ++u) first[u] = a[u], second[u] = b[u];
}

template <class Element>
void moments_of_chunk(const Columns& at, const Element* x, int64_t chunk, Moments* found) {
    const int64_t begin = at.from(chunk), end = at.to(chunk);
    for (int64_t c = 0; c < at.C; ++c) found[c].merge(1, take(x + begin * at.C + c, 1)[0], 0);
    // Blocks grow with what was seen, so that a first row unlike all others is no pivot for long.
    for (int64_t r = begin + 1, rows = 1; r < end; r += rows) {
        rows = std::min({BLOCK, 4 * (r - begin), end - r});
        across(at.C, [&](int64_t c, int n, auto count) {
            constexpr int COUNT = decltype(count)::value;
            Vector pivot[COUNT], first[COUNT], second[COUNT];
            for (int u = 0; u < COUNT; ++u)
                for (int i = 0; i < n; ++i) pivot[u][i] = float(found[c + u * WIDTH + i].mean);
            sums<COUNT>(r, r + rows, c, n, [&](int64_t row, int64_t k, int m, int u, Vector& a, Vector& b) {
                const Vector d = take(x + row * at.C + k, m) - pivot[u];
                a += d, b += d * d;
            }, first, second);
            for (int u = 0; u < COUNT; ++u)
                for (int i = 0; i < n; ++i)
                    found[c + u * WIDTH + i].merge_shifted(double(rows), pivot[u][i], first[u][i], second[u][i]);
        });
    }
}

template <bool STREAM, class Element>
void forward(const Columns& at, bool given, const Element* x, const float* weight, const float* bias, double* mean,
             double* variance, Element* y) {
    std::vector<Moments> partial(given ? 0 : at.chunks() * at.C);
    std::vector<float> high(at.C), scale(at.C), shift(at.C);
#pragma omp parallel num_threads(at.threads)
    {
        if (!given) {
            shared(at, false, [&](int64_t chunk) { moments_of_chunk(at, x, chunk, &partial[chunk * at.C]); });
        }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < at.C; ++c) {
            if (!given) {
                Moments all_rows;
                for (int64_t chunk = 0; chunk < at.chunks(); ++chunk) {
                    const Moments& one = partial[chunk * at.C + c];
                    all_rows.merge(one.count, one.mean, one.squares);
                }
                mean[c] = all_rows.mean, variance[c] = all_rows.variance();
            }
            const Split m(mean[c]);
            const double factor = weight[c] * at.inverse(variance[c]);
            high[c] = m.high, scale[c] = float(factor), shift[c] = float(bias[c] - m.low * factor);
        }
        shared(at, !given, [&](int64_t chunk) {
            for (int64_t r = at.to(chunk) - 1; r >= at.from(chunk); --r) {
                const Element* from = x + r * at.C;
                write<STREAM>(y + r * at.C, at.C, [&](int64_t c, int n) {
                    return (take(from + c, n) - take(&high[c], n)) * take(&scale[c], n) + take(&shift[c], n);
                });
            }
        });
        streamed();
    }
}

template <bool STREAM, class Element>
void backward(const Columns& at, bool given, const Element* x, const Element* dy, const float* weight, const double* mean,
              const double* variance, Element* dx, float* dweight, float* dbias) {
    std::vector<double> partial(2 * at.chunks() * at.C);  // of each chunk: sum(dy), then sum(dy (x - high))
    std::vector<float> high(at.C), a(at.C), b(at.C), shift(at.C);
    for (int64_t c = 0; c < at.C; ++c) high[c] = Split(mean[c]).high;
#pragma omp parallel num_threads(at.threads)
    {
        shared(at, false, [&](int64_t chunk) {
            double *slopes = &partial[2 * chunk * at.C], *levers = slopes + at.C;
            for (int64_t r = at.from(chunk); r < at.to(chunk); r += BLOCK)
                across(at.C, [&](int64_t c, int n, auto count) {
                    constexpr int COUNT = decltype(count)::value;
                    Vector first[COUNT], second[COUNT];
                    sums<COUNT>(r, std::min(at.to(chunk), r + BLOCK), c, n,
                                [&](int64_t row, int64_t k, int m, int, Vector& slope, Vector& lever) {
                        const Vector g = take(dy + row * at.C + k, m);
                        slope += g, lever += g * (take(x + row * at.C + k, m) - take(&high[k], m));
                                }, first, second);
                    for (int u = 0; u < COUNT; ++u)
                        for (int i = 0; i < n; ++i) {
                            slopes[c + u * WIDTH + i] += first[u][i];
                            levers[c + u * WIDTH + i] += second[u][i];
                        }
                });
        });
#pragma omp for schedule(static)
        for (int64_t c = 0; c < at.C; ++c) {
            double slope = 0, lever = 0;
            for (int64_t chunk = 0; chunk < at.chunks(); ++chunk) {
                slope += partial[2 * chunk * at.C + c];
                lever += partial[(2 * chunk + 1) * at.C + c];
            }
            const Split m(mean[c]);
            const double inverse = at.inverse(variance[c]);
            lever = (lever - m.low * slope) * inverse;
            dbias[c] = float(slope), dweight[c] = float(lever);
            const double factor = given ? 0 : -weight[c] * inverse / double(at.R);
            a[c] = float(inverse * weight[c]), b[c] = float(lever * factor * inverse);
            shift[c] = float(slope * factor - m.low * lever * factor * inverse);
        }
        shared(at, true, [&](int64_t chunk) {
            for (int64_t r = at.to(chunk) - 1; r >= at.from(chunk); --r) {
                const Element *g = dy + r * at.C, *f = x + r * at.C;
                write<STREAM>(dx + r * at.C, at.C, [&](int64_t c, int n) {
                    const Vector tilted = (take(f + c, n) - take(&high[c], n)) * take(&b[c], n) + take(&shift[c], n);
                    return take(g + c, n) * take(&a[c], n) + tilted;
                });
            }
        });
        streamed();
    }
}

}  // namespace

// statistics: mean[C], then variance[C]; written unless ``given``.
extern "C" void archbench_columns_forward(int is_bf16, int64_t R, int64_t C, int given, double eps, int threads,
                                          int around, const void* x, const float* weight, const float* bias,
                                          double* statistics, void* y) {
    const Columns at{R, C, eps, threads};
    const auto go = [&](auto element) {
        using Element = decltype(element);
        const auto from = static_cast<const Element*>(x);
        const auto to = static_cast<Element*>(y);
        if (around) forward<true>(at, given, from, weight, bias, statistics, statistics + C, to);
        else forward<false>(at, given, from, weight, bias, statistics, statistics + C, to);
    };
    if (is_bf16) go(bf16{});
    else go(float{});
}

extern "C" void archbench_columns_backward(int is_bf16, int64_t R, int64_t C, int given, double eps, int threads,
                                           int around, const void* x, const void* dy, const float* weight,
                                           const double* statistics, void* dx, float* dweight, float* dbias) {
    const Columns at{R, C, eps, threads};
    const auto go = [&](auto element) {
        using Element = decltype(element);
        const auto from = static_cast<const Element*>(x), slope = static_cast<const Element*>(dy);
        const auto to = static_cast<Element*>(dx);
        if (around) backward<true>(at, given, from, slope, weight, statistics, statistics + C, to, dweight, dbias);
        else backward<false>(at, given, from, slope, weight, statistics, statistics + C, to, dweight, dbias);
    };
    if (is_bf16) go(bf16{});
    else go(float{});
}
