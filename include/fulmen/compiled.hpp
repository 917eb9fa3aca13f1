// Where functions that are no templates are compiled: with each source that calls them, which is what header-only means, or
// once, in the library fulmen::compiled. Macros only.
#pragma once

// A header's end holds the bodies of such functions and what they alone include, as
//
//   #if FULMEN_BODIES
//   FULMEN_INLINE void Thing::do_it() { ... }
//   #endif
//
// Who links fulmen::compiled is given FULMEN_COMPILED by it, and skips them; FULMEN_COMPILING is defined in that library's
// own source. What a training step calls stays outside, to be inlined.
//
// FULMEN_INSTANTIATE(class Template<Thing>); has a class template that fulmen itself uses compiled in the library, but for
// members with their body in the class and those that the compiler writes: these are inline. Members that stand out of the
// class of such a template have FULMEN_INLINE, too.
#if !defined(FULMEN_COMPILED)
#define FULMEN_BODIES 1
#define FULMEN_INLINE inline
#define FULMEN_INSTANTIATE(...) static_assert(true)
#elif defined(FULMEN_COMPILING)
#define FULMEN_BODIES 1
#define FULMEN_INLINE
#define FULMEN_INSTANTIATE(...) template __VA_ARGS__
#else
#define FULMEN_BODIES 0
#define FULMEN_INLINE
#define FULMEN_INSTANTIATE(...) extern template __VA_ARGS__
#endif
