// The library fulmen::compiled: the bodies of all headers, which those who link it do not compile.
#include <fulmen/fulmen.hpp>
#include <fulmen/terminal/image.hpp>
