// A literal as a template argument: names of loss parts and of layers are known at compile time.
#pragma once

#include <cstddef>
#include <string_view>

namespace fulmen {

/// `part<"dice">(...)`, `nn::named<"fc1">(...)`: deduced from a literal where a template asks for a
/// FixedString.
template <std::size_t N>
struct FixedString {
  char text[N]{};  ///< with its terminating zero; public, as a template argument must be

  constexpr FixedString(const char (&literal)[N]) {
    for (std::size_t i = 0; i < N; ++i) text[i] = literal[i];
  }
  constexpr std::string_view view() const { return {text, N - 1}; }
};

namespace detail {

/// One literal after another, kept for the whole run: views of it do not dangle.
template <FixedString A, FixedString B>
inline constexpr auto joined = [] {
  constexpr std::size_t first = A.view().size(), second = B.view().size();
  char both[first + second + 1]{};
  for (std::size_t i = 0; i < first; ++i) both[i] = A.text[i];
  for (std::size_t i = 0; i < second; ++i) both[first + i] = B.text[i];
  return FixedString<first + second + 1>(both);
}();

}  // namespace detail
}  // namespace fulmen
