// Package wire is what the drivers over Redis have in common: the fields of an
// entry, dead letters, and what an error means.
package wire

import (
	"context"
	"errors"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// AnswerTime is how long Redis may take to answer, unless the client's option says
// another: a connection that has died without a word is given up then. It bounds the
// commands that wait for nothing. Without it rueidis takes ten seconds,
// https://pkg.go.dev/github.com/redis/rueidis#ClientOption.
const AnswerTime = 5 * time.Second

// Fields of an entry beside the metadata.
const (
	FieldBody = "body"
	FieldKey  = "key" // the aggregate id, where no header has it
)

// NamespaceForm is what a namespace may look like.
var NamespaceForm = regexp.MustCompile(`^[A-Za-z0-9._-]{0,100}$`)

// Fields are the fields and values of an entry. Headers with the names of the
// entry's own fields are left out: they would be read as those.
func Fields(headers driver.Headers, key string, body []byte) []string {
	fields := make([]string, 0, 2*len(headers)+4)
	for _, h := range headers {
		if h.Name != FieldBody && h.Name != FieldKey {
			fields = append(fields, h.Name, h.Value)
		}
	}
	if key != headers.Get(driver.HeaderAggregateID) {
		fields = append(fields, FieldKey, key)
	}
	return append(fields, FieldBody, rueidis.BinaryString(body))
}

// PutDeadLetter appends the raw body with the original fields, and what went wrong
// in further ones, to a stream. With most above 0 the stream keeps about that many.
func PutDeadLetter(ctx context.Context, client rueidis.Client, stream string, letter *driver.DeadLetter, most int) error {
	words := []string{"XADD", stream}
	if most > 0 {
		words = append(words, "MAXLEN", "~", strconv.Itoa(most))
	}
	words = append(words, "*")
	words = append(words, Fields(driver.DeadLetterHeaders(letter, 8<<10, 16<<10), letter.AggregateID, letter.Body)...)
	return client.Do(ctx, client.B().Arbitrary(words[0]).Keys(stream).Args(words[2:]...).Build()).Error()
}

// ParseDeadLetter reads the fields and values of what PutDeadLetter wrote.
func ParseDeadLetter(fields []string) (driver.DeadLetter, error) {
	var headers driver.Headers
	var body []byte
	key, keyed := "", false
	for n := 0; n+1 < len(fields); n += 2 {
		switch fields[n] {
		case FieldBody:
			body = []byte(fields[n+1])
		case FieldKey:
			key, keyed = fields[n+1], true
		default:
			headers = append(headers, driver.Header{Name: fields[n], Value: fields[n+1]})
		}
	}
	letter, err := driver.ParseDeadLetter(headers, body)
	if keyed {
		letter.AggregateID = key
	}
	return letter, err
}

// Refused reports whether an error says that nothing was done: Redis said so, or
// was never reached.
func Refused(err error) bool {
	if _, ok := rueidis.IsRedisErr(err); ok {
		return true
	}
	var operation *net.OpError
	return errors.Is(err, rueidis.ErrClosing) || errors.As(err, &operation) && operation.Op == "dial"
}
