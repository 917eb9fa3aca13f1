// The policy that stands for "there is no such thing here".
#pragma once

namespace fulmen {

/// The type of `fulmen::none`, accepted wherever a policy may be left out (criterion, optimizer, scheduler, loader).
struct None {};

inline constexpr None none{};

template <class T>
inline constexpr bool is_none = false;
template <>
inline constexpr bool is_none<None> = true;
template <class T>
inline constexpr bool is_none<const T> = is_none<T>;
template <class T>
inline constexpr bool is_none<T&> = is_none<T>;

}  // namespace fulmen
