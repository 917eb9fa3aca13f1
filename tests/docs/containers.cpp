// Compiles and runs the code shown in docs/containers.md.
#include <torch/torch.h>

#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/fulmen.hpp>
#include <fulmen/nn/sequential.hpp>

#include <filesystem>

auto make_encoder() {
  return fulmen::nn::make_sequential(torch::nn::Linear(4, 8), torch::nn::ReLU(), torch::nn::Linear(8, 2));
}

struct Model : torch::nn::Module {
  decltype(make_encoder()) encoder{register_module("encoder", make_encoder())};
  at::Tensor forward(const at::Tensor& x) { return encoder->forward(x).softmax(1); }
};

int main() {
  const at::Tensor x = at::rand({3, 4});
  fulmen::nn::Sequential net{torch::nn::Linear(4, 8), torch::nn::ReLU(), torch::nn::Linear(8, 2)};
  at::Tensor y = net.forward(x);

  fulmen::checkpoint::write("net.pt", fulmen::module_state(*make_encoder()));
  fulmen::load_module_state(net, fulmen::State(fulmen::checkpoint::read("net.pt")));
  std::filesystem::remove("net.pt");
  if (net.forward(x).equal(y)) return 1;

  using fulmen::nn::named;
  fulmen::nn::Sequential head{named<"fc1">(torch::nn::Linear(8, 16)), named<"act">(&torch::tanh),
                              named<"fc2">(torch::nn::Linear(16, 2))};
  head.get<"fc2">().bias.data().zero_();
  head.get<0>().weight.requires_grad_(false);
  if (head.forward(at::rand({3, 8})).sizes() != at::IntArrayRef{3, 2}) return 1;

  fulmen::nn::Sequential reader{torch::nn::LSTM(torch::nn::LSTMOptions(3, 5).batch_first(true)),
                                [](const at::Tensor& all, const auto&) { return all.select(1, -1); },
                                torch::nn::Linear(5, 1)};
  if (reader.forward(at::rand({2, 7, 3})).sizes() != at::IntArrayRef{2, 1}) return 1;

  fulmen::Trainer trainer{
      fulmen::nn::Sequential{[](const at::Tensor& image) { return image.flatten(1); },
                             torch::nn::Linear(64, 32), torch::nn::ReLU(), torch::nn::Linear(32, 10)},
      fulmen::CrossEntropy{}, fulmen::AdamW{.lr = 1e-3}};
  fulmen::TensorLoader images{{at::rand({20, 8, 8}), at::randint(10, {20})}, {.batch_size = 10}};
  if (trainer.test(images).at("test/loss") <= 0) return 1;

  {
    using namespace fulmen::nn;
    Sequential encoder{Residual{LayerNorm(LayerNormOptions({32})), SelfAttention(32, 4)},
                       Residual{LayerNorm(LayerNormOptions({32})), Linear(32, 64), GELU(), Linear(64, 32)}};
    Sequential paths{Branch{Linear(4, 8), Sequential{Linear(4, 8), Tanh()}}, Add(), Linear(8, 2)};
    Sequential wide{Concat{-1, Linear(4, 3), Linear(4, 5)}, Linear(8, 2)};
    Sequential deep{repeat<6>([] { return Residual{Linear(4, 4), ReLU()}; }), Linear(4, 2)};
    if (encoder.forward(at::rand({2, 7, 32})).sizes() != at::IntArrayRef{2, 7, 32}) return 1;
    for (const at::Tensor& out : {paths.forward(x), wide.forward(x), deep.forward(x)}) {
      if (out.sizes() != at::IntArrayRef{3, 2}) return 1;
    }
  }

  const at::Tensor sums = Model{}.forward(x).sum(1);
  return at::allclose(sums, at::ones({3})) ? 0 : 1;
}
