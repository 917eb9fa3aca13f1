// The pickle inside a checkpoint, written: c10::IValue to what Python's torch.load(weights_only=True) reads.
// And the names of dtypes, which reading shares.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/ScalarType.h>

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

// Values nest at most this deep: both directions recurse over them, and so does every destructor. What counts
// is the longest way down from a value, through shared values too.
inline constexpr std::int32_t kMaxDepth = 500;

// How Python names a dtype, and whether it has a storage class of its own. The twelve that have one are
// written as every PyTorch since 1.6 reads them; the younger ones need PyTorch 2.1.
struct DtypeName {
  c10::ScalarType dtype;
  std::string_view name;     // torch.<name>
  std::string_view storage;  // torch.<storage>
};

inline constexpr DtypeName kTypedDtypes[] = {
    {c10::ScalarType::Float, "float32", "FloatStorage"},
    {c10::ScalarType::Double, "float64", "DoubleStorage"},
    {c10::ScalarType::Half, "float16", "HalfStorage"},
    {c10::ScalarType::BFloat16, "bfloat16", "BFloat16Storage"},
    {c10::ScalarType::Long, "int64", "LongStorage"},
    {c10::ScalarType::Int, "int32", "IntStorage"},
    {c10::ScalarType::Short, "int16", "ShortStorage"},
    {c10::ScalarType::Char, "int8", "CharStorage"},
    {c10::ScalarType::Byte, "uint8", "ByteStorage"},
    {c10::ScalarType::Bool, "bool", "BoolStorage"},
    {c10::ScalarType::ComplexFloat, "complex64", "ComplexFloatStorage"},
    {c10::ScalarType::ComplexDouble, "complex128", "ComplexDoubleStorage"},
};

inline const DtypeName* typed_dtype(c10::ScalarType dtype) {
  for (const DtypeName& known : kTypedDtypes) {
    if (known.dtype == dtype) return &known;
  }
  return nullptr;
}

// Python's name of a dtype, without "torch."; empty for those that no checkpoint holds (quantized, bits,
// ...). The younger dtypes are found by LibTorch's own names, since not every LibTorch has all of them.
inline std::string dtype_name(c10::ScalarType dtype) {
  if (const DtypeName* known = typed_dtype(dtype)) return std::string(known->name);
  if (dtype == c10::ScalarType::ComplexHalf) return "complex32";
  std::string name = c10::toString(dtype);
  const bool plain = name.starts_with("Float8_") || name.starts_with("Float4_") || name == "UInt16" ||
                     name == "UInt32" || name == "UInt64";
  if (!plain) return "";
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return name;
}

// The dtype Python calls torch.<name>; Undefined for none.
inline c10::ScalarType dtype_of(std::string_view name) {
  for (int i = 0; i < static_cast<int>(c10::ScalarType::Undefined); ++i) {
    const auto dtype = static_cast<c10::ScalarType>(i);
    if (dtype_name(dtype) == name) return dtype;
  }
  return c10::ScalarType::Undefined;
}

// Strict UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF): what Python accepts as str.
inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const int more = lead < 0x80   ? 0
                     : lead < 0xC2 ? -1
                     : lead < 0xE0 ? 1
                     : lead < 0xF0 ? 2
                     : lead < 0xF5 ? 3
                                   : -1;
    if (more < 0 || text.size() - i <= static_cast<std::size_t>(more)) return false;
    std::uint32_t code = more == 0 ? lead : lead & (0x3Fu >> more);
    for (int k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + static_cast<std::size_t>(k)]);
      if ((next & 0xC0) != 0x80) return false;
      code = code << 6 | (next & 0x3Fu);
    }
    if ((more == 2 && (code < 0x800 || (code >= 0xD800 && code < 0xE000))) ||
        (more == 3 && (code < 0x10000 || code > 0x10FFFF))) {
      return false;
    }
    i += static_cast<std::size_t>(more) + 1;
  }
  return true;
}

// Where a tensor's elements are: in record data/<storage>, `numel` elements of `dtype` long (bytes, if
// untyped).
struct TensorPlace {
  std::size_t storage = 0;
  std::int64_t numel = 0;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  bool untyped = false;
  std::int64_t offset = 0;  // in elements
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;
};

// By TensorImpl.
using TensorPlaces = std::unordered_map<const void*, TensorPlace>;

// Writes pickle protocol 2, the one that torch.load(weights_only=True) is made for. Values have been checked
// before: known kinds, depth within kMaxDepth, a place for every defined tensor.
class Pickler {
 public:
  explicit Pickler(const TensorPlaces& places) : places_(places) {}

  std::string pickle(const c10::IValue& value) {
    out_ = "\x80\x02";
    push(value);
    out_ += '.';
    return std::move(out_);
  }

 private:
  void push(const c10::IValue& value) {
    if (value.isNone()) {
      out_ += 'N';
    } else if (value.isBool()) {
      push_bool(value.toBool());
    } else if (value.isInt()) {
      push_int(value.toInt());
    } else if (value.isDouble()) {
      push_double(value.toDouble());
    } else if (value.isString()) {
      push_string(value.toStringRef());
    } else if (value.isComplexDouble()) {
      const c10::complex<double> number = value.toComplexDouble();
      push_global("__builtin__", "complex");  // the name of builtins in protocol 2
      push_double(number.real());
      push_double(number.imag());
      out_ += "\x86R";
    } else if (value.isDevice()) {
      const c10::Device device = value.toDevice();
      push_global("torch", "device");
      push_string(c10::DeviceTypeName(device.type(), /*lower_case=*/true));
      if (device.has_index()) push_int(device.index());
      out_ += device.has_index() ? "\x86R" : "\x85R";
    } else if (value.isTensor() && !value.toTensor().defined()) {
      out_ += 'N';
    } else if (const void* identity = value.internalToPointer(); !get(identity)) {
      push_shared(value, identity);
    }
  }

  // What may occur twice and then is one object in Python too.
  void push_shared(const c10::IValue& value, const void* identity) {
    if (value.isGenericDict()) {
      out_ += '}';
      put(identity);
      const c10::impl::GenericDict dict = value.toGenericDict();
      if (dict.empty()) return;
      out_ += '(';
      for (const auto& entry : dict) {
        push(entry.key());
        push(entry.value());
      }
      out_ += 'u';
    } else if (value.isList()) {
      out_ += ']';
      put(identity);
      const auto list = value.toListRef();
      if (list.empty()) return;
      out_ += '(';
      for (const c10::IValue& item : list) push(item);
      out_ += 'e';
    } else if (value.isTuple()) {
      const auto& items = value.toTupleRef().elements();
      out_ += '(';
      for (const c10::IValue& item : items) push(item);
      out_ += 't';
      put(identity);
    } else {
      push_tensor(places_.at(identity));
      put(identity);
    }
  }

  // As torch.Tensor.__reduce_ex__ and torch.save's persistent_id do. The location is "cpu" wherever the
  // tensor was: a checkpoint then loads on a machine without that device.
  void push_tensor(const TensorPlace& place) {
    push_global("torch._utils", place.untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
    out_ += "((";
    push_string("storage");
    if (place.untyped) {
      push_global("torch.storage", "UntypedStorage");
    } else {
      push_global("torch", typed_dtype(place.dtype)->storage);
    }
    push_string(std::to_string(place.storage));
    push_string("cpu");
    push_int(place.numel);
    out_ += "tQ";
    push_int(place.offset);
    push_ints(place.sizes);
    push_ints(place.strides);
    push_bool(false);  // requires_grad
    push_global("collections", "OrderedDict");
    out_ += ")R";  // no hooks
    if (place.untyped) push_global("torch", dtype_name(place.dtype));
    out_ += "tR";
  }

  void push_ints(const std::vector<std::int64_t>& values) {
    out_ += '(';
    for (const std::int64_t value : values) push_int(value);
    out_ += 't';
  }

  void push_bool(bool value) { out_ += value ? '\x88' : '\x89'; }

  void push_int(std::int64_t value) {
    if (value >= 0 && value < 0x100) {
      out_ += 'K';
      append(&value, 1);
    } else if (value >= 0 && value < 0x10000) {
      out_ += 'M';
      append(&value, 2);
    } else if (value >= std::numeric_limits<std::int32_t>::min() &&
               value <= std::numeric_limits<std::int32_t>::max()) {
      out_ += 'J';
      append(&value, 4);
    } else {
      out_ += "\x8a\x08";
      append(&value, 8);
    }
  }

  void push_double(double value) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, 8);
    out_ += 'G';
    for (int shift = 56; shift >= 0; shift -= 8) out_ += static_cast<char>(bits >> shift & 0xFF);
  }

  void push_string(std::string_view text) {
    // Names of parameters and options come again and again; long texts do not.
    const bool remember = text.size() <= 256;
    if (remember) {
      const auto [found, fresh] = strings_.try_emplace(std::string(text), memo_size_);
      if (!fresh) {
        push_memo(found->second, 'h', 'j');
        return;
      }
    }
    if (is_utf8(text)) {
      push_unicode(text);
    } else {
      // Bytes, in protocol 2: their Latin-1 text, to be encoded.
      std::string latin1;
      for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x80) {
          latin1 += c;
        } else {
          latin1 += static_cast<char>(0xC0 | byte >> 6);
          latin1 += static_cast<char>(0x80 | (byte & 0x3F));
        }
      }
      // The memo's number is taken after what is inside has taken its own.
      if (remember) strings_.erase(std::string(text));
      push_global("_codecs", "encode");
      push_unicode(latin1);
      push_string("latin1");
      out_ += "\x86R";
      if (remember) strings_.emplace(std::string(text), memo_size_);
    }
    if (remember) push_memo(memo_size_++, 'q', 'r');
  }

  void push_unicode(std::string_view text) {
    if (text.size() > std::numeric_limits<std::uint32_t>::max()) {
      throw std::invalid_argument("a string of " + std::to_string(text.size()) +
                                  " bytes: expected less than 4 GiB");
    }
    out_ += 'X';
    const auto size = static_cast<std::uint32_t>(text.size());
    append(&size, 4);
    out_ += text;
  }

  void push_global(std::string_view module, std::string_view name) {
    std::string text = std::string(module) + "\n" + std::string(name) + "\n";
    const auto [found, fresh] = globals_.try_emplace(std::move(text), memo_size_);
    if (!fresh) {
      push_memo(found->second, 'h', 'j');
      return;
    }
    out_ += 'c';
    out_ += found->first;
    push_memo(memo_size_++, 'q', 'r');
  }

  bool get(const void* identity) {
    const auto found = objects_.find(identity);
    if (found == objects_.end()) return false;
    push_memo(found->second, 'h', 'j');
    return true;
  }

  void put(const void* identity) {
    objects_.emplace(identity, memo_size_);
    push_memo(memo_size_++, 'q', 'r');
  }

  void push_memo(std::uint32_t index, char short_form, char long_form) {
    out_ += index < 0x100 ? short_form : long_form;
    append(&index, index < 0x100 ? 1 : 4);
  }

  void append(const void* little_endian, std::size_t size) {
    out_.append(static_cast<const char*>(little_endian), size);
  }

  const TensorPlaces& places_;
  std::string out_;
  std::uint32_t memo_size_ = 0;
  std::unordered_map<const void*, std::uint32_t> objects_;
  std::unordered_map<std::string, std::uint32_t> strings_;
  std::unordered_map<std::string, std::uint32_t> globals_;
};

}  // namespace fulmen::checkpoint::detail
