// Arithmetic on a few numbers at once, and loops over many on LibTorch's threads: what elementwise.hpp is
// made of.
#pragma once

#include <fulmen/compiled.hpp>

#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// The mark of functions that work on vectors: they use AVX2 whatever the program is compiled for, and what
// they call must be marked too. supported() says whether they may be called.
#if defined(__x86_64__)
#define FULMEN_SIMD [[gnu::always_inline, gnu::target("avx2")]] inline
#define FULMEN_SIMD_ENTRY [[gnu::noinline, gnu::target("avx2")]]
#else
#define FULMEN_SIMD [[gnu::always_inline]] inline
#define FULMEN_SIMD_ENTRY [[gnu::noinline]]
#endif

#if FULMEN_BODIES
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>
#endif

namespace fulmen::simd {

// Vectors by hand: at -O2 compilers leave loops with a square root as they are, since sqrt() may set errno.
#if defined(__AVX512F__)
inline constexpr std::size_t bytes = 64;
#elif defined(__x86_64__)
inline constexpr std::size_t bytes = 32;
#else
inline constexpr std::size_t bytes = 16;
#endif

/// Whether this machine has the instructions.
inline bool supported() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2");
#else
  return true;
#endif
}

/// To be called at the end of a function that used vectors, else code for older instructions is slow after
/// it. (g++ does it by itself only in programs that are compiled for AVX.)
FULMEN_SIMD void leave() {
#if defined(__x86_64__)
  _mm256_zeroupper();
#endif
}

using Floats [[gnu::vector_size(bytes)]] = float;
using Doubles [[gnu::vector_size(bytes)]] = double;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Floats;
};
template <>
struct VectorOf<double> {
  using type = Doubles;
};
template <class T>
using Vector = typename VectorOf<T>::type;

FULMEN_SIMD float sqrt(float x) { return std::sqrt(x); }
FULMEN_SIMD double sqrt(double x) { return std::sqrt(x); }
FULMEN_SIMD Floats sqrt(const Floats& x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__x86_64__)
  return _mm256_sqrt_ps(x);
#elif defined(__aarch64__)
  return vsqrtq_f32(x);
#else
  Floats y;
  for (std::size_t i = 0; i < bytes / sizeof(float); ++i) y[i] = std::sqrt(x[i]);
  return y;
#endif
}
FULMEN_SIMD Doubles sqrt(const Doubles& x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_pd(x);
#elif defined(__x86_64__)
  return _mm256_sqrt_pd(x);
#elif defined(__aarch64__)
  return vsqrtq_f64(x);
#else
  Doubles y;
  for (std::size_t i = 0; i < bytes / sizeof(double); ++i) y[i] = std::sqrt(x[i]);
  return y;
#endif
}

// As torch.maximum and torch.minimum: NaN if either is.
template <class V>
FULMEN_SIMD V max(const V& a, const V& b) {
  return ((a > b) | (a != a)) ? a : b;
}
template <class V>
FULMEN_SIMD V min(const V& a, const V& b) {
  return ((a < b) | (a != a)) ? a : b;
}
template <class V>
FULMEN_SIMD V abs(const V& x) {
  return x < V{} ? -x : x;
}
/// -1, 0 or 1 (NaN gives 0, as torch.sign).
template <class T, class V>
FULMEN_SIMD V sign(const V& x) {
  const V zero{}, one = zero + T(1);
  return x > zero ? one : (x < zero ? -one : zero);
}

/// Calls f(begin, end) for parts of [0, size), on LibTorch's threads where there are several.
/// (at::parallel_for itself is serial in programs that are not compiled for OpenMP, and such that are bring a second pool.)
void parallel_for(std::int64_t size, c10::function_ref<void(std::int64_t begin, std::int64_t end)> f);

#if FULMEN_BODIES
FULMEN_INLINE void parallel_for(std::int64_t size,
                                c10::function_ref<void(std::int64_t begin, std::int64_t end)> f) {
  const at::Tensor numbers = at::empty({size}, at::TensorOptions(at::kByte));
  at::TensorIterator iterator = at::TensorIterator::borrowing_nullary_op(numbers);
  const char* const base = static_cast<const char*>(numbers.const_data_ptr());
  // The loop in two dimensions, of which the second has size 1: in LibTorch's own wrapper for one g++ 12 takes fields for
  // uninitialized, and warns.
  iterator.for_each(
      [&](char** data, const std::int64_t*, std::int64_t count, std::int64_t) {
        const std::int64_t begin = data[0] - base;
        f(begin, begin + count);
      },
      1);
}
#endif

}  // namespace fulmen::simd
