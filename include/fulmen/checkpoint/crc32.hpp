// CRC-32 as zip files use it (polynomial 0xEDB88320, reflected), at memory speed where the CPU multiplies
// without carry.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

// <wmmintrin.h> and <smmintrin.h> and not <immintrin.h>, which alone is slower to compile than this header.
#if defined(__x86_64__) && defined(__GNUC__)
#define FULMEN_CRC32_PCLMUL 1
#include <smmintrin.h>
#include <wmmintrin.h>
#else
#define FULMEN_CRC32_PCLMUL 0
#endif

namespace fulmen::checkpoint::detail {

// Tables of "slicing by eight": table[k][b] is the CRC of byte b followed by k zero bytes.
using Crc32Tables = std::array<std::array<std::uint32_t, 256>, 8>;

consteval Crc32Tables make_crc32_tables(std::uint32_t polynomial) {
  Crc32Tables table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? polynomial : 0u);
    table[0][byte] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 0xFF];
    }
  }
  return table;
}

inline constexpr auto kCrc32Tables = make_crc32_tables(0xEDB88320);

// The CRC register (not complemented) after `size` more bytes, with tables alone: about 2 GB/s.
inline std::uint32_t crc32_by_table(std::uint32_t crc, const unsigned char* data, std::size_t size,
                                    const Crc32Tables& t = kCrc32Tables) {
  for (; size >= 8; size -= 8, data += 8) {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    std::memcpy(&low, data, 4);
    std::memcpy(&high, data + 4, 4);
    low ^= crc;
    crc = t[7][low & 0xFF] ^ t[6][(low >> 8) & 0xFF] ^ t[5][(low >> 16) & 0xFF] ^ t[4][low >> 24] ^
          t[3][high & 0xFF] ^ t[2][(high >> 8) & 0xFF] ^ t[1][(high >> 16) & 0xFF] ^ t[0][high >> 24];
  }
  for (; size > 0; --size, ++data) crc = (crc >> 8) ^ t[0][(crc ^ *data) & 0xFF];
  return crc;
}

#if FULMEN_CRC32_PCLMUL
// The same by carry-less multiplication, four 128-bit lanes at once: above 10 GB/s. `size` is a multiple of
// 16 and at least 64. Source: Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
// Instruction", Intel 2009; the constants are those it gives for this polynomial.
__attribute__((target("pclmul,sse4.1"))) inline std::uint32_t crc32_by_pclmul(std::uint32_t crc,
                                                                              const unsigned char* data,
                                                                              std::size_t size) {
  const auto load = [](const unsigned char* p) __attribute__((target("pclmul,sse4.1"))) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  };
  const __m128i k1k2 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
  const __m128i k3k4 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
  const __m128i k5 = _mm_set_epi64x(0, 0x0163cd6124);
  const __m128i poly = _mm_set_epi64x(0x01f7011641, 0x01db710641);
  const __m128i low32 = _mm_setr_epi32(~0, 0, ~0, 0);

  __m128i x1 = _mm_xor_si128(load(data), _mm_cvtsi32_si128(static_cast<int>(crc)));
  __m128i x2 = load(data + 16);
  __m128i x3 = load(data + 32);
  __m128i x4 = load(data + 48);
  for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
    const __m128i y1 = _mm_clmulepi64_si128(x1, k1k2, 0x00);
    const __m128i y2 = _mm_clmulepi64_si128(x2, k1k2, 0x00);
    const __m128i y3 = _mm_clmulepi64_si128(x3, k1k2, 0x00);
    const __m128i y4 = _mm_clmulepi64_si128(x4, k1k2, 0x00);
    x1 = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x1, k1k2, 0x11), y1), load(data));
    x2 = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x2, k1k2, 0x11), y2), load(data + 16));
    x3 = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x3, k1k2, 0x11), y3), load(data + 32));
    x4 = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x4, k1k2, 0x11), y4), load(data + 48));
  }
  // Four lanes into one, then the remaining blocks of 16 bytes.
  for (const __m128i next : {x2, x3, x4}) {
    const __m128i y = _mm_clmulepi64_si128(x1, k3k4, 0x00);
    x1 = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x1, k3k4, 0x11), y), next);
  }
  for (; size >= 16; data += 16, size -= 16) {
    const __m128i y = _mm_clmulepi64_si128(x1, k3k4, 0x00);
    x1 = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x1, k3k4, 0x11), y), load(data));
  }
  // 128 bits into 64, and Barrett's reduction to 32.
  __m128i y = _mm_clmulepi64_si128(x1, k3k4, 0x10);
  x1 = _mm_xor_si128(_mm_srli_si128(x1, 8), y);
  y = _mm_srli_si128(x1, 4);
  x1 = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(x1, low32), k5, 0x00), y);
  y = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(x1, low32), poly, 0x10), low32);
  y = _mm_clmulepi64_si128(y, poly, 0x00);
  return static_cast<std::uint32_t>(_mm_extract_epi32(_mm_xor_si128(x1, y), 1));
}
#endif

// The CRC-32 of a text whose beginning has the CRC `crc` (0 for none) and whose rest is these bytes:
// crc32(crc32(0, a), b) is the CRC of ab.
inline std::uint32_t crc32(std::uint32_t crc, const void* bytes, std::size_t size) {
  const auto* data = static_cast<const unsigned char*>(bytes);
  crc = ~crc;
#if FULMEN_CRC32_PCLMUL
  static const bool has_pclmul = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  if (has_pclmul && size >= 64) {
    const std::size_t blocks = size & ~std::size_t{15};
    crc = crc32_by_pclmul(crc, data, blocks);
    data += blocks;
    size -= blocks;
  }
#endif
  return ~crc32_by_table(crc, data, size);
}

}  // namespace fulmen::checkpoint::detail
