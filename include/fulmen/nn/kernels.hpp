// The few kernels of a small step for which LibTorch's cost more to call than to run: matrix products by BLAS
// itself, sums of columns. Each says whether it takes its tensors; where it does not, the caller uses
// LibTorch's.
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/Tensor.h>

#if FULMEN_BODIES
#include <fulmen/optim/simd.hpp>

#include <ATen/Parallel.h>

#include <cstdint>
#include <cstring>
#endif

namespace fulmen::nn::kernels {

/// How the rows of a product begin.
enum class Begin : unsigned char { zero, kept };

/// out = a·b, or out += a·b (Begin::kept), for matrices m×k and k×n, each of which may be the transpose of a
/// contiguous one (`at` says so: then it is stored as k×m, or n×k). float32 and float64 on the CPU; the same
/// function that at::mm calls, so the same bits.
/// @return whether it was done
bool gemm(at::Tensor& out, const at::Tensor& a, bool a_transposed, const at::Tensor& b, bool b_transposed,
          Begin begin);

/// Every row of `out` (r×n) becomes `row` (n). float32 and float64 on the CPU.
bool fill_rows(at::Tensor& out, const at::Tensor& row);

/// out = the sum of the rows of x (r×n), or out += it. float32 and float64 on the CPU.
bool sum_rows(at::Tensor& out, const at::Tensor& x, Begin begin);

/// y = max(x, 0); y may be x. NaN stays.
bool relu(at::Tensor& y, const at::Tensor& x);
/// gx = gy where y > 0, else 0; gx may be gy.
bool relu_backward(at::Tensor& gx, const at::Tensor& gy, const at::Tensor& y);

#if FULMEN_BODIES
namespace detail {

// BLAS, where LibTorch's library has it with its usual names. Sizes are 64 bits wide, of which a BLAS of 32
// bits reads the lower half.
#if defined(__ELF__) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define FULMEN_BLAS 1
extern void blas_sgemm(const char*, const char*, const std::int64_t*, const std::int64_t*,
                       const std::int64_t*, const float*, const float*, const std::int64_t*, const float*,
                       const std::int64_t*, const float*, float*, const std::int64_t*) __asm__("sgemm_")
    __attribute__((weak));
extern void blas_dgemm(const char*, const char*, const std::int64_t*, const std::int64_t*,
                       const std::int64_t*, const double*, const double*, const std::int64_t*, const double*,
                       const std::int64_t*, const double*, double*, const std::int64_t*) __asm__("dgemm_")
    __attribute__((weak));
#endif

inline bool direct(const at::Tensor& t, at::ScalarType type) {
  return t.is_cpu() && t.scalar_type() == type && t.is_contiguous() && !t.is_neg();
}
inline bool real(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble;
}

/// LibTorch shares larger ones among its threads.
inline bool small(const at::Tensor& t) { return t.numel() < 32768 || at::get_num_threads() == 1; }

/// Adds up `count` numbers (vectors of columns), `stride` apart, as ATen does: in groups of 16 or more, these
/// in groups of as many groups, and so on on four levels.
template <class W, class T>
FULMEN_SIMD W cascade_sum(const T* x, std::int64_t stride, std::int64_t count) {
  int power = 0;  // of 2: how many make a group
  while ((std::int64_t{1} << power) < count) ++power;
  power = power / 4 < 4 ? 4 : power / 4;
  const std::int64_t group = std::int64_t{1} << power;
  W level[4] = {}, value;
  std::int64_t i = 0;
  while (i + group <= count) {
    for (const std::int64_t end = i + group; i < end; ++i) {
      std::memcpy(&value, x + i * stride, sizeof(W));
      level[0] = level[0] + value;
    }
    for (int j = 1; j < 4; ++j) {
      level[j] = level[j] + level[j - 1];
      level[j - 1] = W{};
      if ((i & ((group - 1) << (j * power))) != 0) break;
    }
  }
  for (; i < count; ++i) {
    std::memcpy(&value, x + i * stride, sizeof(W));
    level[0] = level[0] + value;
  }
  for (int j = 1; j < 4; ++j) level[0] = level[0] + level[j];
  return level[0];
}

/// Sums of columns in the order in which at::sum adds them up, so that they are the same to the bit: what is
/// left of the columns after blocks of four of its vectors (of 32 bytes each) is added up by four rows in
/// turn.
template <class T>
FULMEN_SIMD_ENTRY void sum_rows_of(T* out, const T* x, std::int64_t rows, std::int64_t n, bool keeps,
                                   std::int64_t block) {
  using V = simd::Vector<T>;
  constexpr std::int64_t width = sizeof(V) / sizeof(T);
  const std::int64_t in_blocks = n / block * block;
  const auto column = [&]<class W>(std::int64_t at, W) __attribute__((always_inline, target("avx2"))) {
    W sum, value;
    if (at < in_blocks) {
      sum = cascade_sum<W>(x + at, n, rows);
    } else {
      W part[4];
      for (int k = 0; k < 4; ++k) part[k] = cascade_sum<W>(x + k * n + at, 4 * n, rows / 4);
      for (std::int64_t r = rows / 4 * 4; r < rows; ++r) {
        std::memcpy(&value, x + r * n + at, sizeof(W));
        part[0] = part[0] + value;
      }
      sum = part[0] + part[1] + part[2] + part[3];
    }
    if (keeps) {
      std::memcpy(&value, out + at, sizeof(W));
      sum = value + sum;
    }
    std::memcpy(out + at, &sum, sizeof(W));
  };
  std::int64_t at = 0;
  for (; at + width <= n; at += width) column(at, V{});
  for (; at < n; ++at) column(at, T{});
  simd::leave();
}

template <class T>
FULMEN_SIMD_ENTRY void relu_of(T* y, const T* x, std::int64_t n) {
  using V = simd::Vector<T>;
  constexpr std::int64_t width = sizeof(V) / sizeof(T);
  std::int64_t i = 0;
  for (; i + width <= n; i += width) {
    V v;
    std::memcpy(&v, x + i, sizeof(V));
    v = v < V{} ? V{} : v;
    std::memcpy(y + i, &v, sizeof(V));
  }
  for (; i < n; ++i) y[i] = x[i] < 0 ? 0 : x[i];
  simd::leave();
}

template <class T>
FULMEN_SIMD_ENTRY void relu_backward_of(T* gx, const T* gy, const T* y, std::int64_t n) {
  using V = simd::Vector<T>;
  constexpr std::int64_t width = sizeof(V) / sizeof(T);
  std::int64_t i = 0;
  for (; i + width <= n; i += width) {
    V g, v;
    std::memcpy(&g, gy + i, sizeof(V));
    std::memcpy(&v, y + i, sizeof(V));
    g = v <= V{} ? V{} : g;
    std::memcpy(gx + i, &g, sizeof(V));
  }
  for (; i < n; ++i) gx[i] = y[i] <= 0 ? 0 : gy[i];
  simd::leave();
}

/// f<float>() or f<double>().
template <class F>
inline void by_type(at::ScalarType type, F&& f) {
  if (type == at::kFloat)
    f.template operator()<float>();
  else
    f.template operator()<double>();
}

}  // namespace detail

FULMEN_INLINE bool gemm(at::Tensor& out, const at::Tensor& a, bool a_transposed, const at::Tensor& b,
                        bool b_transposed, Begin begin) {
#if defined(FULMEN_BLAS)
  const at::ScalarType type = out.scalar_type();
  if (detail::blas_sgemm == nullptr || detail::blas_dgemm == nullptr || !detail::real(out) ||
      !detail::direct(out, type) || !detail::direct(a, type) || !detail::direct(b, type)) {
    return false;
  }
  // In BLAS's order of columns the product is that of the transposes, the other way round.
  const std::int64_t m = out.size(0), n = out.size(1), k = a.size(a_transposed ? 0 : 1);
  if (a.size(a_transposed ? 1 : 0) != m || b.size(b_transposed ? 1 : 0) != k ||
      b.size(b_transposed ? 0 : 1) != n)
    return false;
  if (m == 0 || n == 0 || k == 0) return false;
  const char ta = b_transposed ? 'T' : 'N', tb = a_transposed ? 'T' : 'N';
  const std::int64_t lda = b_transposed ? k : n, ldb = a_transposed ? m : k;
  const auto run = [&]<class T>(auto* blas, T) {
    const T one = 1, beta = begin == Begin::kept ? T(1) : T(0);
    blas(&ta, &tb, &n, &m, &k, &one, b.const_data_ptr<T>(), &lda, a.const_data_ptr<T>(), &ldb, &beta,
         out.mutable_data_ptr<T>(), &n);
  };
  if (type == at::kFloat)
    run(detail::blas_sgemm, float{});
  else
    run(detail::blas_dgemm, double{});
  return true;
#else
  static_cast<void>(out), static_cast<void>(a), static_cast<void>(a_transposed), static_cast<void>(b),
      static_cast<void>(b_transposed), static_cast<void>(begin);
  return false;
#endif
}

FULMEN_INLINE bool fill_rows(at::Tensor& out, const at::Tensor& row) {
  const at::ScalarType type = out.scalar_type();
  const std::int64_t n = out.size(1), rows = out.size(0);
  if (!detail::real(out) || !detail::direct(out, type) || !detail::direct(row, type) || row.numel() != n ||
      !detail::small(out))
    return false;
  detail::by_type(type, [&]<class T> {
    T* const to = out.mutable_data_ptr<T>();
    const T* const from = row.const_data_ptr<T>();
    for (std::int64_t r = 0; r < rows; ++r)
      std::memcpy(to + r * n, from, static_cast<std::size_t>(n) * sizeof(T));
  });
  return true;
}

FULMEN_INLINE bool sum_rows(at::Tensor& out, const at::Tensor& x, Begin begin) {
  const at::ScalarType type = out.scalar_type();
  if (!detail::real(out) || !detail::direct(out, type) || !detail::direct(x, type) || x.dim() != 2 ||
      out.numel() != x.size(1) || x.size(1) == 1 || !detail::small(x) || !simd::supported()) {
    return false;
  }
  detail::by_type(type, [&]<class T> {
    detail::sum_rows_of(out.mutable_data_ptr<T>(), x.const_data_ptr<T>(), x.size(0), x.size(1),
                        begin == Begin::kept, 128 / static_cast<std::int64_t>(sizeof(T)));
  });
  return true;
}

FULMEN_INLINE bool relu(at::Tensor& y, const at::Tensor& x) {
  const at::ScalarType type = y.scalar_type();
  if (!detail::real(y) || !detail::direct(y, type) || !detail::direct(x, type) || x.numel() != y.numel() ||
      !detail::small(x) || !simd::supported()) {
    return false;
  }
  detail::by_type(
      type, [&]<class T> { detail::relu_of(y.mutable_data_ptr<T>(), x.const_data_ptr<T>(), x.numel()); });
  return true;
}

FULMEN_INLINE bool relu_backward(at::Tensor& gx, const at::Tensor& gy, const at::Tensor& y) {
  const at::ScalarType type = gx.scalar_type();
  if (!detail::real(gx) || !detail::direct(gx, type) || !detail::direct(gy, type) ||
      !detail::direct(y, type) || gy.numel() != gx.numel() || y.numel() != gx.numel() || !detail::small(gx) ||
      !simd::supported()) {
    return false;
  }
  detail::by_type(type, [&]<class T> {
    detail::relu_backward_of(gx.mutable_data_ptr<T>(), gy.const_data_ptr<T>(), y.const_data_ptr<T>(),
                             gx.numel());
  });
  return true;
}
#endif

}  // namespace fulmen::nn::kernels
