package sqlstore

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/tidings-go/tidings/driver"
)

// encodeHeaders writes headers as JSON: [["name","value"], …]; what is no UTF-8
// text has a third element and is hexadecimal.
func encodeHeaders(headers driver.Headers) (string, error) {
	if len(headers) == 0 {
		return "", nil
	}
	if text, ok := encodePlain(headers); ok {
		return text, nil
	}
	pairs := make([][]string, len(headers))
	for n, h := range headers {
		pairs[n] = []string{h.Name, h.Value}
		if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Value) {
			pairs[n] = []string{fmt.Sprintf("%x", h.Name), fmt.Sprintf("%x", h.Value), "hexadecimal"}
		}
	}
	text, err := json.Marshal(pairs)
	return string(text), err
}

// encodePlain is for headers that JSON writes as they are: almost all, and every
// event of a transaction pays for it.
func encodePlain(headers driver.Headers) (string, bool) {
	text := make([]byte, 0, 512)
	for n, h := range headers {
		if !isPlain(h.Name) || !isPlain(h.Value) {
			return "", false
		}
		if n == 0 {
			text = append(text, `[["`...)
		} else {
			text = append(text, `"],["`...)
		}
		text = append(text, h.Name...)
		text = append(text, `","`...)
		text = append(text, h.Value...)
	}
	return string(append(text, `"]]`...)), true
}

// isPlain: printable ASCII that encoding/json does not escape.
func isPlain(text string) bool {
	for n := range len(text) {
		switch c := text[n]; {
		case c < ' ' || c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

func decodeHeaders(text string) (driver.Headers, error) {
	if text == "" {
		return nil, nil
	}
	if headers, ok := decodePlain(text); ok {
		return headers, nil
	}
	var pairs [][]string
	if err := json.Unmarshal([]byte(text), &pairs); err != nil {
		return nil, err
	}
	headers := make(driver.Headers, 0, len(pairs))
	for _, p := range pairs {
		if len(p) < 2 {
			return nil, fmt.Errorf("a header of %d parts", len(p))
		}
		h := driver.Header{Name: p[0], Value: p[1]}
		if len(p) > 2 {
			name, err := hex.DecodeString(p[0])
			if err != nil {
				return nil, err
			}
			value, err := hex.DecodeString(p[1])
			if err != nil {
				return nil, err
			}
			h = driver.Header{Name: string(name), Value: string(value)}
		}
		headers = append(headers, h)
	}
	return headers, nil
}

// decodePlain reads what encodePlain writes, and nothing else: without escapes
// each quotation mark begins or ends a string.
func decodePlain(text string) (driver.Headers, bool) {
	rest, ok := strings.CutPrefix(text, `[["`)
	if !ok || strings.Contains(text, `\`) || !isASCII(text) {
		return nil, false
	}
	headers := make(driver.Headers, 0, 8)
	for {
		var h driver.Header
		if h.Name, rest, ok = strings.Cut(rest, `"`); !ok {
			return nil, false
		}
		if rest, ok = strings.CutPrefix(rest, `,"`); !ok {
			return nil, false
		}
		if h.Value, rest, ok = strings.Cut(rest, `"`); !ok {
			return nil, false
		}
		headers = append(headers, h)
		if rest == "]]" {
			return headers, true
		}
		if rest, ok = strings.CutPrefix(rest, `],["`); !ok {
			return nil, false
		}
	}
}

func isASCII(text string) bool {
	for n := range len(text) {
		if text[n] < ' ' || text[n] > '~' {
			return false
		}
	}
	return true
}
