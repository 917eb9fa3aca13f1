// How fulmen reports bad input: a standard exception with one formatted line.
#pragma once

#include <fulmen/compiled.hpp>

#include <stdexcept>
#include <string>

#if FULMEN_BODIES
#include <fmt/format.h>
#else
// Header-only, fmt/base.h would bring in all of {fmt}, which is only needed where messages are put together.
#pragma push_macro("FMT_HEADER_ONLY")
#undef FMT_HEADER_ONLY
#include <fmt/base.h>
#pragma pop_macro("FMT_HEADER_ONLY")
#endif

namespace fulmen {

namespace detail {

std::string formatted(fmt::string_view format, fmt::format_args args);

/// fmt::format, of which a source that formats compiles next to nothing.
template <class... Args>
std::string format(fmt::format_string<Args...> format, Args&&... args) {
  return formatted(format.get(), fmt::make_format_args(args...));
}

}  // namespace detail

/// Throws `Exception` (std::runtime_error unless said) with the formatted message.
/// Standard exception classes are used throughout, so that fulmen itself brings no vtable and no typeinfo.
/// Marked cold: a check costs its caller one compare and one branch that is predicted not taken.
template <class Exception = std::runtime_error, class... Args>
[[noreturn, gnu::cold, gnu::noinline]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Exception(detail::formatted(format.get(), fmt::make_format_args(args...)));
}

#if FULMEN_BODIES
FULMEN_INLINE std::string detail::formatted(fmt::string_view format, fmt::format_args args) { return fmt::vformat(format, args); }
#endif

}  // namespace fulmen
