// The pickle inside a checkpoint, read: what Python's torch.save writes, to c10::IValue.
#pragma once

#include <fulmen/checkpoint/pickle.hpp>
#include <fulmen/checkpoint/zip.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/ScalarType.h>
#include <c10/core/Storage.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fulmen::checkpoint::detail {

// The pickle machine, for what torch.load(weights_only=True) accepts and a little more (protocols 3 to 5).
// Nothing in the pickle is called: a global is a name, and the few names that a checkpoint needs are known
// here.
//
// It trusts nothing. Values are nodes in one vector that refer to each other by index, so that neither a
// cycle nor a nesting of millions can hurt; only the value at the end is turned into an IValue, with a limit
// on its depth. Memory is within a constant factor (about 50) of the pickle's size, plus the storages, each
// read once.
//
// Errors: std::runtime_error that says what is wrong, without the file's name.
class Unpickler {
 public:
  // Storages are the records data/<key> of `records`.
  Unpickler(std::string_view pickle, const ZipReader& records) : in_(pickle), records_(records) {}

  c10::IValue unpickle() {
    const std::size_t size = in_.size();
    for (;;) {
      const auto op = take<std::uint8_t>();
      if (op == '.') break;
      execute(op, size);
    }
    return build(pop(), 0);
  }

 private:
  using Index = std::uint32_t;

  enum class Kind : std::uint8_t { leaf, tuple, list, dict, global, storage };

  struct Node {
    Kind kind = Kind::leaf;
    bool started = false;     // build() is inside or done
    bool done = false;        // value is the final one
    std::int32_t height = 0;  // once done: of the longest way down
    c10::IValue value;        // leaf: the value; global: its full name
    std::vector<Index>
        items{};  // tuple, list: the items; dict: key, value, key, value, ...; storage: {number}
  };

  struct TypedStorage {
    c10::Storage storage;
    c10::ScalarType dtype;  // Undefined: untyped
  };

  [[noreturn]] static void fail(const std::string& what) { throw std::runtime_error("its pickle " + what); }

  static void require(bool condition) {
    if (!condition) fail("is damaged");
  }

  // -- bytes

  std::string_view take_bytes(std::uint64_t size) {
    if (size > in_.size()) fail("is truncated");
    const std::string_view bytes = in_.substr(0, static_cast<std::size_t>(size));
    in_.remove_prefix(static_cast<std::size_t>(size));
    return bytes;
  }

  template <class Int>
  Int take() {
    Int value{};
    std::memcpy(&value, take_bytes(sizeof(Int)).data(), sizeof(Int));
    return value;
  }

  std::string_view take_line() {
    const std::size_t end = in_.find('\n');
    if (end == std::string_view::npos) fail("is truncated");
    const std::string_view line = take_bytes(end);
    take_bytes(1);
    return line;
  }

  // -- nodes and the stack

  Index add(Node node) {
    if (nodes_.size() >= std::numeric_limits<Index>::max()) fail("holds too many values");
    nodes_.push_back(std::move(node));
    return static_cast<Index>(nodes_.size() - 1);
  }

  void push(Index index) { stack_.push_back(index); }
  void push(Kind kind, std::vector<Index> items = {}) {
    push(add({.kind = kind, .value = {}, .items = std::move(items)}));
  }
  void push_leaf(c10::IValue value) { push(add({.value = std::move(value)})); }

  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  Index top() const {
    require(stack_.size() > floor());
    return stack_.back();
  }

  Index pop() {
    const Index index = top();
    stack_.pop_back();
    return index;
  }

  std::vector<Index> pop_to_mark() {
    require(!marks_.empty());
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Index> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }

  void push_tuple(std::size_t size) {
    require(stack_.size() >= floor() + size);
    const auto begin = stack_.end() - static_cast<std::ptrdiff_t>(size);
    std::vector<Index> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    push(Kind::tuple, std::move(items));
  }

  // The container on top, to be added to.
  Node& container(Kind kind) {
    Node& node = nodes_[top()];
    require(node.kind == kind);
    return node;
  }

  void append_to(Kind kind, const std::vector<Index>& items) {
    Node& node = container(kind);
    require(kind != Kind::dict || items.size() % 2 == 0);
    node.items.insert(node.items.end(), items.begin(), items.end());
  }

  void remember(std::uint32_t slot) { memo_[slot] = top(); }

  void recall(std::uint32_t slot) {
    const auto found = memo_.find(slot);
    require(found != memo_.end());
    push(found->second);
  }

  // -- what nodes hold

  bool is_string(Index index) const {
    return nodes_[index].kind == Kind::leaf && nodes_[index].value.isString();
  }

  const std::string& string_at(Index index) const {
    require(is_string(index));
    return nodes_[index].value.toStringRef();
  }

  std::int64_t int_at(Index index) const {
    require(nodes_[index].kind == Kind::leaf && nodes_[index].value.isInt());
    return nodes_[index].value.toInt();
  }

  bool bool_at(Index index) const {
    require(nodes_[index].kind == Kind::leaf && nodes_[index].value.isBool());
    return nodes_[index].value.toBool();
  }

  const std::string& global_at(Index index) const {
    require(nodes_[index].kind == Kind::global);
    return nodes_[index].value.toStringRef();
  }

  std::vector<std::int64_t> ints_at(Index index) const {
    // More dimensions than any kernel takes are damage.
    require(nodes_[index].kind == Kind::tuple && nodes_[index].items.size() <= 64);
    std::vector<std::int64_t> values;
    for (const Index item : nodes_[index].items) values.push_back(int_at(item));
    return values;
  }

  // -- opcodes

  // `pickle_size` bounds what the copying operations may make together: a pickle that Python wrote does each
  // of them once per string in it, a made-up one could do it a million times to the same long string.
  void execute(std::uint8_t op, std::size_t pickle_size) {
    // clang-format off
    switch (op) {
      case 0x80:  // PROTO
        if (const auto protocol = take<std::uint8_t>(); protocol > 5) {
          fail("has protocol " + std::to_string(protocol) + ", expected 2 to 5");
        }
        break;
      case 0x95: take<std::uint64_t>(); break;  // FRAME
      case '(': marks_.push_back(stack_.size()); break;
      case '0': pop(); break;
      case '1': pop_to_mark(); break;
      case '2': push(top()); break;  // DUP
      case 'q': remember(take<std::uint8_t>()); break;
      case 'r': remember(take<std::uint32_t>()); break;
      case 0x94: remember(static_cast<std::uint32_t>(memo_.size())); break;  // MEMOIZE
      case 'h': recall(take<std::uint8_t>()); break;
      case 'j': recall(take<std::uint32_t>()); break;

      case 'N': push_leaf({}); break;
      case 0x88: push_leaf(true); break;
      case 0x89: push_leaf(false); break;
      case 'K': push_leaf(static_cast<std::int64_t>(take<std::uint8_t>())); break;
      case 'M': push_leaf(static_cast<std::int64_t>(take<std::uint16_t>())); break;
      case 'J': push_leaf(static_cast<std::int64_t>(take<std::int32_t>())); break;
      case 0x8a: push_leaf(long_of(take_bytes(take<std::uint8_t>()))); break;   // LONG1
      case 0x8b: push_leaf(long_of(take_bytes(take<std::uint32_t>()))); break;  // LONG4
      case 'G': push_leaf(double_of(take_bytes(8))); break;
      case 'X':  // BINUNICODE, BINSTRING, BINBYTES
      case 'T':
      case 'B': push_leaf(std::string(take_bytes(take<std::uint32_t>()))); break;
      case 0x8c:  // SHORT_BINUNICODE, SHORT_BINSTRING, SHORT_BINBYTES
      case 'U':
      case 'C': push_leaf(std::string(take_bytes(take<std::uint8_t>()))); break;
      case 0x8d:  // BINUNICODE8, BINBYTES8, BYTEARRAY8
      case 0x8e:
      case 0x96: push_leaf(std::string(take_bytes(take<std::uint64_t>()))); break;

      case ')': push(Kind::tuple); break;
      case 0x85: push_tuple(1); break;
      case 0x86: push_tuple(2); break;
      case 0x87: push_tuple(3); break;
      case 't': push(Kind::tuple, pop_to_mark()); break;
      case ']': push(Kind::list); break;
      case 'l': push(Kind::list, pop_to_mark()); break;
      case 0x8f: push(Kind::list); break;                 // EMPTY_SET
      case 0x91: push(Kind::list, pop_to_mark()); break;  // FROZENSET
      case '}': push(Kind::dict); break;
      case 'a': append_to(Kind::list, {pop()}); break;
      case 'e':  // APPENDS, ADDITEMS
      case 0x90: append_to(Kind::list, pop_to_mark()); break;
      case 's': {
        const Index value = pop();
        const Index key = pop();
        append_to(Kind::dict, {key, value});
        break;
      }
      case 'u': append_to(Kind::dict, pop_to_mark()); break;

      case 'c': {
        const std::string_view module = take_line();
        push_global(module, take_line());
        break;
      }
      case 0x93: {  // STACK_GLOBAL
        const Index name = pop();
        const Index module = pop();
        charge(string_at(module).size() + string_at(name).size(), pickle_size);
        push_global(string_at(module), string_at(name));
        break;
      }
      case 'Q': push_storage(pop()); break;
      case 'R':
      case 0x81: {  // REDUCE, NEWOBJ
        const Index arguments = pop();
        const Index callable = pop();
        if (nodes_[callable].kind != Kind::global) fail("calls what is not a function");
        push(call(global_at(callable), arguments_at(arguments), pickle_size));
        break;
      }
      case 'b':  // BUILD: attributes, such as the _metadata of a module's OrderedDict; no IValue has any
        pop();
        require(nodes_[top()].kind != Kind::global);
        break;
      default: fail("has an operation that no checkpoint needs (" + std::to_string(op) + ")");
    }
    // clang-format on
  }

  void charge(std::size_t bytes, std::size_t pickle_size) {
    require(bytes <= pickle_size - charged_);
    charged_ += bytes;
  }

  // Two's complement, little-endian, of any length.
  static std::int64_t long_of(std::string_view bytes) {
    const bool negative = !bytes.empty() && (static_cast<unsigned char>(bytes.back()) & 0x80) != 0;
    std::uint64_t value = negative ? ~std::uint64_t{0} : 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const auto byte = static_cast<unsigned char>(bytes[i]);
      if (i < 8) {
        value = (value & ~(std::uint64_t{0xFF} << (8 * i))) | std::uint64_t{byte} << (8 * i);
      } else if (byte != (negative ? 0xFF : 0)) {
        fail("holds an integer that does not fit into 64 bits");
      }
    }
    const auto result = static_cast<std::int64_t>(value);
    if ((result < 0) != negative) fail("holds an integer that does not fit into 64 bits");
    return result;
  }

  static double double_of(std::string_view big_endian) {
    std::uint64_t bits = 0;
    for (const char c : big_endian) bits = bits << 8 | static_cast<unsigned char>(c);
    double value = 0;
    std::memcpy(&value, &bits, 8);
    return value;
  }

  // Protocol 2 writes str's text as UTF-8; encoded to Latin-1 it is the bytes that Python meant.
  static std::string latin1_of(std::string_view utf8) {
    std::string bytes;
    for (std::size_t i = 0; i < utf8.size(); ++i) {
      const auto lead = static_cast<unsigned char>(utf8[i]);
      if (lead < 0x80) {
        bytes += utf8[i];
        continue;
      }
      require((lead == 0xC2 || lead == 0xC3) && i + 1 < utf8.size());
      bytes += static_cast<char>((lead & 3) << 6 | (static_cast<unsigned char>(utf8[++i]) & 0x3F));
    }
    return bytes;
  }

  void push_global(std::string_view module, std::string_view name) {
    if (module == "__builtin__") module = "builtins";  // Python 2's name, which protocol 2 writes
    push(add({.kind = Kind::global, .value = std::string(module) + "." + std::string(name)}));
  }

  // ('storage', torch.FloatStorage, key, location, numel), as torch.save's persistent_id has it. The location
  // is not looked at: everything is read to the CPU.
  void push_storage(Index id) {
    require(nodes_[id].kind == Kind::tuple && nodes_[id].items.size() == 5);
    const std::vector<Index> parts = nodes_[id].items;
    require(string_at(parts[0]) == "storage");
    const c10::ScalarType dtype = storage_dtype(global_at(parts[1]));
    const std::string& key = string_at(parts[2]);
    const std::int64_t numel = int_at(parts[4]);

    auto found = storages_.find(key);
    if (found == storages_.end()) found = storages_.emplace(key, read_storage("data/" + key)).first;
    const std::int64_t element =
        dtype == c10::ScalarType::Undefined ? 1 : static_cast<std::int64_t>(c10::elementSize(dtype));
    std::int64_t bytes = 0;
    if (numel < 0 || __builtin_mul_overflow(numel, element, &bytes) ||
        bytes > static_cast<std::int64_t>(found->second.nbytes())) {
      throw std::runtime_error("record 'data/" + key + "' has " + std::to_string(found->second.nbytes()) +
                               " bytes, expected " + std::to_string(numel) + " elements of " +
                               std::to_string(element));
    }
    typed_storages_.push_back({found->second, dtype});
    push(Kind::storage, {static_cast<Index>(typed_storages_.size() - 1)});
  }

  c10::Storage read_storage(const std::string& record) const {
    const std::uint64_t size = records_.size_of(record);  // within the file's size: ZipReader has seen to it
    c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<std::int64_t>(size),
                         c10::GetCPUAllocator(),
                         /*resizable=*/true);
    records_.read(record, storage.mutable_data());
    return storage;
  }

  static c10::ScalarType storage_dtype(const std::string& name) {
    const std::string_view class_name = std::string_view(name).substr(name.rfind('.') + 1);
    if (name.starts_with("torch.")) {
      for (const DtypeName& known : kTypedDtypes) {
        if (known.storage == class_name) return known.dtype;
      }
      if (class_name.ends_with("UntypedStorage")) return c10::ScalarType::Undefined;
    }
    fail("holds a " + name + ", which is not supported");
  }

  // -- calls

  // A copy, since a call adds nodes and so moves those there are; of a few, since no function here takes
  // more.
  std::vector<Index> arguments_at(Index index) const {
    require(nodes_[index].kind == Kind::tuple && nodes_[index].items.size() <= 16);
    return nodes_[index].items;
  }

  Index call(const std::string& name, const std::vector<Index>& arguments, std::size_t pickle_size) {
    if (name == "torch._utils._rebuild_tensor_v2") return rebuild_tensor(arguments, /*has_dtype=*/false);
    if (name == "torch._utils._rebuild_tensor_v3") return rebuild_tensor(arguments, /*has_dtype=*/true);
    if (name == "torch._utils._rebuild_parameter" || name == "torch._utils._rebuild_parameter_with_state") {
      require(arguments.size() >= 2 && is_tensor(arguments[0]));
      return require_grad(arguments[0], bool_at(arguments[1]));
    }
    if (name == "torch._tensor._rebuild_from_type_v2") {  // (rebuild, class, its arguments, attributes)
      require(arguments.size() == 4);
      const std::string& function = global_at(arguments[0]);
      if (function.starts_with("torch._utils.") && global_at(arguments[1]).starts_with("torch.")) {
        return call(function, arguments_at(arguments[2]), pickle_size);
      }
    }
    if (name == "collections.OrderedDict" && arguments.empty()) return add({.kind = Kind::dict, .value = {}});
    if (name == "collections.Counter" && arguments.size() == 1) return of_kind(arguments[0], Kind::dict);
    if (name == "torch.Size" && arguments.size() == 1) return of_kind(arguments[0], Kind::tuple);
    if ((name == "builtins.set" || name == "builtins.frozenset") && arguments.size() == 1) {
      return of_kind(arguments[0], Kind::list);
    }
    if (name == "_codecs.encode" && arguments.size() == 2) {
      const std::string& text = string_at(arguments[0]);
      charge(text.size(), pickle_size);
      return add({.value = latin1_of(text)});
    }
    if (name == "builtins.bytes" && arguments.empty()) return add({.value = std::string()});
    if (name == "builtins.bytearray") {
      if (arguments.empty()) return add({.value = std::string()});
      const std::string& text = string_at(arguments[0]);
      if (arguments.size() == 1) return arguments[0];
      charge(text.size(), pickle_size);
      return add({.value = latin1_of(text)});
    }
    if (name == "builtins.complex" && arguments.size() == 2) {
      const c10::IValue& real = nodes_[arguments[0]].value;
      const c10::IValue& imaginary = nodes_[arguments[1]].value;
      require(real.isDouble() && imaginary.isDouble());
      return add({.value = c10::complex<double>(real.toDouble(), imaginary.toDouble())});
    }
    if (name == "torch.device" && !arguments.empty() && arguments.size() <= 2) {
      std::string device = string_at(arguments[0]);
      if (arguments.size() == 2) device += ":" + std::to_string(int_at(arguments[1]));
      return add({.value = c10::Device(device)});  // a c10::Error for a device LibTorch does not know
    }
    fail("holds a " + name +
         ", which is not supported: expected tensors, numbers, strings, None, lists, tuples and "
         "dicts (of a module, save its state_dict())");
  }

  Index of_kind(Index index, Kind kind) const {
    require(nodes_[index].kind == kind);
    return index;
  }

  bool is_tensor(Index index) const {
    return nodes_[index].kind == Kind::leaf && nodes_[index].value.isTensor();
  }

  // (storage, offset, size, stride, requires_grad, hooks[, dtype][, {'conj': True, 'neg': True}])
  Index rebuild_tensor(const std::vector<Index>& arguments, bool has_dtype) {
    const std::size_t expected = has_dtype ? 7 : 6;
    require(arguments.size() == expected || arguments.size() == expected + 1);
    require(nodes_[arguments[0]].kind == Kind::storage);
    const TypedStorage& typed = typed_storages_[nodes_[arguments[0]].items[0]];
    c10::ScalarType dtype = typed.dtype;
    if (has_dtype) {
      const std::string& name = global_at(arguments[6]);
      dtype = name.starts_with("torch.") ? dtype_of(std::string_view(name).substr(6))
                                         : c10::ScalarType::Undefined;
      if (dtype == c10::ScalarType::Undefined) fail("holds a tensor of " + name + ", which is not supported");
    } else if (dtype == c10::ScalarType::Undefined) {
      dtype = c10::ScalarType::Byte;
    }

    at::Tensor tensor =
        view(typed.storage, dtype, int_at(arguments[1]), ints_at(arguments[2]), ints_at(arguments[3]));
    if (arguments.size() == expected + 1) {
      const Node& metadata = nodes_[arguments[expected]];
      require(metadata.kind == Kind::dict);
      for (std::size_t i = 0; i < metadata.items.size(); i += 2) {
        const std::string& bit = string_at(metadata.items[i]);
        const bool value = bool_at(metadata.items[i + 1]);
        if (bit == "conj" && tensor.is_complex()) {
          tensor._set_conj(value);
        } else if (bit == "neg" && (tensor.is_floating_point() || tensor.is_complex())) {
          tensor._set_neg(value);
        } else {
          require(!value);
        }
      }
    }
    return require_grad(add({.value = std::move(tensor)}), bool_at(arguments[4]));
  }

  Index require_grad(Index index, bool value) {
    const at::Tensor& tensor = nodes_[index].value.toTensor();
    if (tensor.requires_grad() == value) return index;
    require(!value || tensor.is_floating_point() || tensor.is_complex());
    at::Tensor result = tensor.detach();
    result.set_requires_grad(value);
    return add({.value = std::move(result)});
  }

  // The tensor, once its last element has been found to lie in the storage.
  static at::Tensor view(const c10::Storage& storage, c10::ScalarType dtype, std::int64_t offset,
                         const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides) {
    bool good = offset >= 0 && sizes.size() == strides.size();
    std::int64_t numel = 1;
    std::int64_t last = offset;  // the farthest element
    bool empty = false;
    for (std::size_t i = 0; good && i < sizes.size(); ++i) {
      std::int64_t reach = 0;
      good = sizes[i] >= 0 && strides[i] >= 0 &&
             !__builtin_mul_overflow(numel, sizes[i] == 0 ? 1 : sizes[i], &numel) &&
             (sizes[i] == 0 || (!__builtin_mul_overflow(sizes[i] - 1, strides[i], &reach) &&
                                !__builtin_add_overflow(last, reach, &last)));
      empty = empty || sizes[i] == 0;
    }
    if (empty)
      last = 0;  // it refers to no element: its offset means nothing, and set_ would grow the storage for it
    std::int64_t end = 0;
    const auto element = static_cast<std::int64_t>(c10::elementSize(dtype));
    good = good && !__builtin_mul_overflow(last, element, &end) &&
           !__builtin_mul_overflow(numel, element, &numel) &&
           !__builtin_add_overflow(end, empty ? 0 : element, &end) &&
           (empty || end <= static_cast<std::int64_t>(storage.nbytes()));
    if (!good) {
      std::string shape;
      for (const std::int64_t size : sizes) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
      throw std::runtime_error("a tensor of shape [" + shape + "] at offset " + std::to_string(offset) +
                               " reaches beyond its storage of " + std::to_string(storage.nbytes()) +
                               " bytes");
    }
    return at::empty({0}, at::TensorOptions().dtype(dtype)).set_(storage, empty ? 0 : offset, sizes, strides);
  }

  // -- the value at the end

  c10::IValue build(Index index, std::int32_t depth) {
    const auto check_depth = [](std::int32_t value) {
      if (value > kMaxDepth) fail("holds values nested more than " + std::to_string(kMaxDepth) + " deep");
    };
    check_depth(depth);
    Node& node = nodes_[index];  // build() adds no nodes: the reference stays good
    if (node.done || node.kind == Kind::leaf) return node.value;
    if (node.started) fail("holds a container that contains itself");
    node.started = true;
    const auto build_item = [&](Index item) {
      c10::IValue value = build(item, depth + 1);
      node.height = std::max(node.height, nodes_[item].height + 1);
      check_depth(node.height);
      return value;
    };
    switch (node.kind) {
      case Kind::tuple: {
        std::vector<c10::IValue> items;
        items.reserve(node.items.size());
        for (const Index item : node.items) items.push_back(build_item(item));
        node.value = c10::ivalue::Tuple::create(std::move(items));
        break;
      }
      case Kind::list: {
        c10::impl::GenericList list(c10::AnyType::get());
        list.reserve(node.items.size());
        for (const Index item : node.items) list.push_back(build_item(item));
        node.value = std::move(list);
        break;
      }
      case Kind::dict: {
        c10::impl::GenericDict dict(c10::AnyType::get(), c10::AnyType::get());
        for (std::size_t i = 0; i < node.items.size(); i += 2) {
          c10::IValue key = build_item(node.items[i]);
          if (!key.isString() && !key.isInt() && !key.isDouble() && !key.isBool()) {
            fail("holds a dict with a key of type " + key.tagKind() + ", expected str, int, float or bool");
          }
          dict.insert_or_assign(std::move(key), build_item(node.items[i + 1]));
        }
        node.value = std::move(dict);
        break;
      }
      case Kind::storage: {
        const TypedStorage& typed = typed_storages_[node.items[0]];
        const c10::ScalarType dtype =
            typed.dtype == c10::ScalarType::Undefined ? c10::ScalarType::Byte : typed.dtype;
        const auto numel = static_cast<std::int64_t>(typed.storage.nbytes() / c10::elementSize(dtype));
        node.value = view(typed.storage, dtype, 0, {numel}, {1});
        break;
      }
      case Kind::global: {
        const std::string name = node.value.toStringRef();
        const c10::ScalarType dtype = name.starts_with("torch.") ? dtype_of(std::string_view(name).substr(6))
                                                                 : c10::ScalarType::Undefined;
        if (dtype == c10::ScalarType::Undefined) {
          fail("holds a reference to " + name + ", expected values only");
        }
        node.value = dtype;  // an int, as TorchScript has it: IValue::toScalarType() gives it back
        break;
      }
      case Kind::leaf:
        break;
    }
    node.done = true;
    return node.value;
  }

  std::string_view in_;
  const ZipReader& records_;
  std::vector<Node> nodes_;
  std::vector<Index> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint32_t, Index> memo_;
  std::unordered_map<std::string, c10::Storage> storages_;
  std::vector<TypedStorage> typed_storages_;
  std::size_t charged_ = 0;
};

}  // namespace fulmen::checkpoint::detail
