package streams

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// id is the id of an entry: milliseconds and a sequence number
// (https://redis.io/docs/latest/develop/data-types/streams/#entry-ids).
type id struct{ time, sequence uint64 }

func parseID(text string) (id, error) {
	first, second, found := strings.Cut(text, "-")
	milliseconds, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		return id{}, fmt.Errorf("streams: %q is no entry id: %w", text, err)
	}
	if !found {
		return id{time: milliseconds}, nil
	}
	sequence, err := strconv.ParseUint(second, 10, 64)
	if err != nil {
		return id{}, fmt.Errorf("streams: %q is no entry id: %w", text, err)
	}
	return id{milliseconds, sequence}, nil
}

func (i id) String() string {
	return strconv.FormatUint(i.time, 10) + "-" + strconv.FormatUint(i.sequence, 10)
}

func (i id) compare(other id) int {
	return cmp.Or(cmp.Compare(i.time, other.time), cmp.Compare(i.sequence, other.sequence))
}

// next is the smallest id above.
func (i id) next() id {
	if i.sequence == math.MaxUint64 {
		return id{i.time + 1, 0}
	}
	return id{i.time, i.sequence + 1}
}

func (i id) at() time.Time { return time.UnixMilli(int64(i.time)).UTC() }

// before is the largest id of an entry that was stored before a time.
func before(t time.Time) id {
	milliseconds := t.UnixMilli()
	if milliseconds <= 0 {
		return id{}
	}
	return id{uint64(milliseconds) - 1, math.MaxUint64}
}
