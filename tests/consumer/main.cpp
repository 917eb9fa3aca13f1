// The program of the consumers: the library and LibTorch compile, link and run.
#include <fulmen/fulmen.hpp>

int main() { return torch::ones({2, 2}).sum().item<double>() == 4.0 ? 0 : 1; }
