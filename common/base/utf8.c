#include "common/base/utf8.h"

bool sk_utf8_valid(struct sk_span text)
{
    size_t i = 0;
    while (i < text.size) {
        uint8_t c = text.bytes[i];
        size_t more = 0;
        uint32_t point = c;
        uint32_t least = 1;
        if (c >= 0x80) {
            if (c >= 0xC2 && c <= 0xDF) {
                more = 1, point = c & 0x1FU, least = 0x80;
            } else if (c >= 0xE0 && c <= 0xEF) {
                more = 2, point = c & 0x0FU, least = 0x800;
            } else if (c >= 0xF0 && c <= 0xF4) {
                more = 3, point = c & 0x07U, least = 0x10000;
            } else {
                return false;
            }
        }
        if (more > text.size - i - 1)
            return false;
        for (size_t k = 1; k <= more; k++) {
            if ((text.bytes[i + k] & 0xC0) != 0x80)
                return false;
            point = point << 6 | (text.bytes[i + k] & 0x3FU);
        }
        if (point < least || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF))
            return false;
        i += 1 + more;
    }
    return true;
}
