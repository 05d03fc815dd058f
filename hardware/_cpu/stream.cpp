// A copy that writes around the caches: what a kernel reaches that knows it will not read its result soon.
// An ordinary store first reads the line it is going to overwrite, so memory moves three bytes for two.
#include <cstdint>
#include <cstring>
#include <omp.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

void copy_lines(char* target, const char* source, int64_t bytes) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < bytes; i += 64)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), _mm512_loadu_si512(source + i));
    _mm_sfence();
#elif defined(__AVX__)
    for (int64_t i = 0; i < bytes; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i)));
    _mm_sfence();
#else
    std::memcpy(target, source, bytes);
#endif
}

}  // namespace

// Both start at a multiple of 64 bytes, and so long is what is copied.
extern "C" void archbench_copy(char* target, const char* source, int64_t bytes, int threads) {
    const int64_t lines = bytes / 64;
#pragma omp parallel num_threads(threads)
    {
        const int64_t count = omp_get_num_threads(), own = omp_get_thread_num();
        const int64_t from = lines * own / count * 64, to = lines * (own + 1) / count * 64;
        copy_lines(target + from, source + from, to - from);
    }
}
